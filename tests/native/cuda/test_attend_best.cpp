// A sparse layer in one kernel: lists equal to what the CPU chooses by the same scores, attention to them against sums
// in double precision; rows in host memory, with a cache of them, against rows on the device.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

#include "backend/cpu/topk.h"
#include "backend/cuda/attend_best.h"
#include "backend/cuda/row_cache.h"
#include "backend/cuda/scores.h"
#include "base/half.h"
#include "check.h"
#include "device_array.h"
#include "random_weights.h"

using namespace fasa;
using fasa::test::DeviceArray;
using fasa::test::random_floats;

namespace {

constexpr int32_t n_seq = 2, seq = 1;
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float scale = 0.2f;

struct Shape {
    int32_t head_dim, n_dom, n_head, n_head_kv, n_set, n_ctx;
    int n_sm;  // which decides how many blocks share a set
};

// The first dim of a key; the queries of kinds that are not random look at nothing else.
struct Kind {
    const char* name;
    float (*value)(std::mt19937& random, int32_t pos);
    bool finite = true;
};

float normal(std::mt19937& random) { return std::normal_distribution<float>()(random); }

const Kind kinds[] = {
    {"many ties", [](std::mt19937& random, int32_t) { return std::round(normal(random) * 2); }},
    {"equal", [](std::mt19937&, int32_t) { return 1.0f; }},
    {"both zeros", [](std::mt19937& random, int32_t) { return random() % 2 ? 0.0f : -0.0f; }},
    {"ever better", [](std::mt19937&, int32_t pos) { return static_cast<float>(pos / 16); }},
    {"ever worse", [](std::mt19937&, int32_t pos) { return static_cast<float>(-pos / 16); }},
    {"far from 0", [](std::mt19937& random, int32_t) { return 3000 + 8 * normal(random); }},
    {"two hills", [](std::mt19937& random, int32_t) { return random() % 2 ? 1.0f : -1 + 1e-2f * normal(random); }},
    {"a few that stand out",
     [](std::mt19937& random, int32_t pos) { return pos % 211 ? 1e-3f * normal(random) : 1e3f * normal(random); }},
    {"not finite",
     [](std::mt19937& random, int32_t pos) {
         return pos % 7 ? normal(random) : pos % 2 ? NAN : pos % 3 ? infinity : -infinity;
     },
     false},
    {"NaN", [](std::mt19937&, int32_t) { return static_cast<float>(NAN); }, false},
    {"infinite", [](std::mt19937&, int32_t pos) { return pos % 5 ? infinity : 0.0f; }, false},
};

class Lab {
   public:
    explicit Lab(const Shape& shape)
        : s(shape),
          q_(random_floats(int64_t{s.n_head} * s.head_dim, 1)),
          dom_(halves(s.n_dom, 2)),
          rest_(halves(2 * int64_t{s.head_dim} - s.n_dom, 3)),
          device_q_(q_),
          device_dom_(dom_),
          device_rest_(rest_),
          y_(size_t{1} * s.n_head * s.head_dim),
          scores_(size_t{1} * s.n_set * s.n_ctx),
          positions_(size_t{1} * s.n_set * s.n_ctx),
          count_(static_cast<size_t>(s.n_set)),
          n_slow_(std::vector<unsigned>{0}),
          step_(1),
          op_({s.n_sm, 227 << 10}, {n_slow_.data()}) {}

    // Keys whose first dim is of a kind, and queries that see it alone.
    void set(const Kind& kind) {
        std::mt19937 random(5);
        for (int32_t head = 0; head < s.n_head_kv; ++head) {
            for (int32_t pos = 0; pos < s.n_ctx; ++pos) {
                dom_[static_cast<size_t>(row(head, pos)) * s.n_dom] = float_to_half(kind.value(random, pos));
            }
        }
        for (size_t i = 0; i < q_.size(); ++i) q_[i] = i % s.head_dim == 0 ? 0.25f : 0.0f;
        device_q_.set(q_);
        device_dom_.set(dom_);
        finite_ = kind.finite;
    }
    // The lists, and attention by them; `slow`: how many selections took the slow way.
    unsigned check(int32_t n_pos, const Budget& budget, int32_t n_pos_max) {
        by_step_ = !by_step_;  // told the number of positions, or where to read it, in turns
        step_.set({{seq, n_pos - 1}});
        const cuda::Past past{step_.data(), seq, by_step_ ? -1 : n_pos, by_step_ ? n_pos_max : n_pos};
        const SetQueries queries{device_q_.data(), nullptr, s.n_head, s.n_set};
        const unsigned slow_before = n_slow_.host()[0];
        const int32_t capacity = budget.keep;
        positions_.set(std::vector<int32_t>(positions_.size(), -1));
        const Selection selection{positions_.data(), count_.data(), s.n_set, capacity};
        cuda::token_scores(scores_.data(), queries, view(), past, false, nullptr, nullptr);
        op_.run(
            {y_.data(), device_q_.data(), scale, s.n_head, s.n_set, scores_.data(), view(), past, budget, selection},
            nullptr);
        const auto positions = positions_.host(), count = count_.host();
        const auto y = y_.host();

        Team team(1);
        cpu::TopK topk(team, {1, 1, s.n_set, s.n_set, 2, s.n_ctx});
        std::vector<int32_t> list(size_t{1} * s.n_set * capacity), n_listed(static_cast<size_t>(s.n_set));
        Selection expected{list.data(), n_listed.data(), s.n_set, capacity};
        topk.run(scores_.host().data(), n_pos, budget.keep, budget.n_sink, budget.n_recent, expected);
        CHECK(count == n_listed);
        double off = 0;
        for (int32_t set = 0; set < s.n_set; ++set) {
            const int32_t* found = positions.data() + int64_t{set} * capacity;
            const bool same = std::equal(found, found + n_listed[set], expected.list(set));
            CHECK(same);
            const int32_t group = s.n_head / s.n_set;
            for (int32_t head = set * group; same && finite_ && head < (set + 1) * group; ++head) {
                off = std::max(off, attention_off(y, head, set, {found, found + n_listed[set]}));
            }
        }
        CHECK_NEAR(off, 0.0, 2e-5);
        CHECK(positions[int64_t{s.n_set} * capacity] == -1);  // nothing is written behind the lists
        return n_slow_.host()[0] - slow_before;
    }
    // Steps of a sequence whose queries change a little, with all rows on the device, and with them in host memory and
    // n_row of each KV head in a cache; the same bits. Returns the rows found there and not found.
    RowCounts check_cached(int n_step, int32_t n_row, const Budget& budget) {
        const cuda::PinnedBuffer host(rest_.size() * sizeof(rest_[0]), "rows of a test");
        std::memcpy(host.data(), rest_.data(), host.n_bytes());
        KvView split = view();
        split.rest = static_cast<uint16_t*>(host.on_device());
        split.host_layer = 0;
        OpsLimits limits{1, 0, s.n_head, s.n_head_kv, s.head_dim, s.n_ctx};
        limits.host_row_values = 2 * s.head_dim - s.n_dom;
        limits.n_host_layer = 1, limits.n_cache_row = n_row, limits.n_seq = n_seq;
        Arena measure(nullptr);
        cuda::RowCache::take(measure, limits);
        const DeviceArray<uint8_t> memory(std::vector<uint8_t>(measure.used()));
        Arena arena(memory.data());
        const cuda::RowCache cache(limits, cuda::RowCache::take(arena, limits), nullptr);

        const Selection selection{positions_.data(), count_.data(), s.n_set, budget.keep};
        std::vector<float> q = q_;
        for (int step = 0; step < n_step; ++step) {
            const int32_t n_pos = s.n_ctx - n_step + step;
            const cuda::Past past{step_.data(), seq, n_pos, n_pos};
            const auto run = [&](const KvView& kv, const cuda::RowCacheView& rows) {
                cuda::token_scores(scores_.data(), {device_q_.data(), nullptr, s.n_head, s.n_set}, kv, past, false,
                                   nullptr, nullptr);
                op_.run({y_.data(), device_q_.data(), scale, s.n_head, s.n_set, scores_.data(), kv, past, budget,
                         selection, rows},
                        nullptr);
                return std::pair(y_.host(), positions_.host());
            };
            const auto noise = random_floats(static_cast<int64_t>(q.size()), 100 + static_cast<unsigned>(step));
            for (size_t i = 0; i < q.size(); ++i) q[i] = 0.9f * q[i] + 0.2f * noise[i];
            device_q_.set(q);
            const auto expected = run(view(), {}), found = run(split, cache.layer(0));
            cache.keep(nullptr);
            CHECK(std::memcmp(found.first.data(), expected.first.data(), found.first.size() * sizeof(float)) == 0);
            CHECK(found.second == expected.second);
        }
        return cache.counts(nullptr);
    }
    KvView view() const {
        return {device_dom_.data(), device_rest_.data(), nullptr, s.n_ctx, s.n_head_kv, s.head_dim, s.n_dom};
    }
    const cuda::AttendBest& op() const { return op_; }

    const Shape s;

   private:
    int64_t row(int32_t head_kv, int32_t pos) const { return (int64_t{seq} * s.n_head_kv + head_kv) * s.n_ctx + pos; }
    std::vector<uint16_t> halves(int64_t width, unsigned seed) const {
        std::vector<uint16_t> bits;
        for (const float x : random_floats(n_seq * int64_t{s.n_head_kv} * s.n_ctx * width, seed)) {
            bits.push_back(float_to_half(x));
        }
        return bits;
    }
    // The largest difference of a head's output.
    double attention_off(const std::vector<float>& y, int32_t head, int32_t set,
                         const std::vector<int32_t>& list) const {
        const int32_t head_kv = set * s.n_head_kv / s.n_set, n_rest = s.head_dim - s.n_dom;
        const int64_t width = 2 * int64_t{s.head_dim} - s.n_dom;
        std::vector<double> weights;
        double top = -1e300, sum = 0, off = 0;
        for (const int32_t pos : list) {
            double score = 0;
            for (int32_t d = 0; d < s.head_dim; ++d) {
                const int64_t at = row(head_kv, pos);
                const uint16_t key = d < s.n_dom ? dom_[at * s.n_dom + d] : rest_[at * width + d - s.n_dom];
                score += double{q_[int64_t{head} * s.head_dim + d]} * half_to_float(key);
            }
            weights.push_back(double{scale} * score);
            top = std::max(top, weights.back());
        }
        for (double& w : weights) sum += w = std::exp(w - top);
        for (int32_t d = 0; d < s.head_dim; ++d) {
            double value = 0;
            for (size_t i = 0; i < list.size(); ++i) {
                value += weights[i] / sum * half_to_float(rest_[row(head_kv, list[i]) * width + n_rest + d]);
            }
            const double found = y[int64_t{head} * s.head_dim + d];
            off = std::max(off, std::isnan(found) ? 1e9 : std::fabs(found - value));
        }
        return off;
    }

    std::vector<float> q_;
    std::vector<uint16_t> dom_, rest_;
    bool by_step_ = false, finite_ = true;
    DeviceArray<float> device_q_;
    DeviceArray<uint16_t> device_dom_, device_rest_;
    DeviceArray<float> y_, scores_;
    DeviceArray<int32_t> positions_, count_;
    DeviceArray<unsigned> n_slow_;
    DeviceArray<cuda::Step> step_;
    cuda::AttendBest op_;
};

}  // namespace

TEST(cuda_attend_best_of_shapes) {
    for (const Shape& shape : {Shape{128, 32, 8, 2, 2, 1500, 32},
                               {128, 32, 4, 2, 4, 1500, 32},  // two sets a KV head
                               {128, 24, 7, 1, 1, 1500, 8},
                               {128, 16, 2, 1, 1, 1500, 2},
                               {128, 8, 1, 1, 1, 1500, 3},
                               {128, 64, 8, 1, 1, 1500, 132},
                               {64, 16, 12, 4, 4, 1500, 17},
                               {64, 8, 2, 2, 2, 1500, 8},
                               {64, 32, 2, 2, 2, 1500, 8},
                               {96, 24, 4, 2, 2, 1500, 8},
                               {256, 64, 8, 1, 1, 1500, 4},
                               {256, 32, 4, 2, 2, 1500, 64}}) {
        Lab lab(shape);
        for (const int32_t n_pos : {1, 2, 31, 300, 1500}) {
            lab.check(n_pos, {64, 4, 32}, 1500);
            lab.check(n_pos, {1499, 0, 1}, 1500);
            lab.check(n_pos, {1, 0, 0}, 1500);
        }
    }
}

// Little enough for a sanitizer that slows clusters down a thousandfold.
TEST(cuda_attend_best_once) {
    Lab lab({128, 16, 2, 1, 1, 1500, 4});
    CHECK(lab.check(1500, {64, 4, 32}, 1500) == 0);
    CHECK(lab.check_cached(2, 300, {64, 4, 32}).hit > 0);
}

TEST(cuda_attend_best_of_any_scores) {
    for (const int n_sm : {32, 6}) {
        Lab lab({64, 16, 4, 2, 2, 3004, n_sm});
        for (const Kind& kind : kinds) {
            lab.set(kind);
            const int before = check::failures;
            for (const int32_t n_pos : {1, 257, 3004}) {
                for (const Budget& budget :
                     {Budget{1, 0, 0}, {36, 4, 32}, {256, 4, 32}, {290, 300, 300}, {1000, 0, 0}}) {
                    lab.check(n_pos, budget, 3004);
                }
            }
            check::report(check::failures == before, __FILE__, __LINE__, kind.name);
        }
    }
}

TEST(cuda_attend_best_of_long_contexts) {
    Lab lab({64, 16, 4, 2, 2, 20012, 32});
    for (const int32_t n_pos : {9001, 20012}) {
        CHECK(lab.check(n_pos, {256, 4, 32}, 20012) == 0);  // by the counts of bins
        CHECK(lab.check(n_pos, {1000, 4, 32}, 20012) == 0);
    }
    for (const Kind& kind : kinds) {
        lab.set(kind);
        const unsigned n_slow = lab.check(20012, {256, 4, 32}, 20012);
        if (std::string(kind.name) == "equal") CHECK(n_slow == 2);  // one a set
    }
    Lab wide({64, 16, 4, 2, 2, 20012, 4});  // shares with more candidates than blocks list
    for (const Kind& kind : kinds) {
        wide.set(kind);
        wide.check(20012, {256, 4, 32}, 20012);
    }
}

TEST(cuda_attend_best_with_a_cache_of_rows) {
    constexpr int n_step = 6;
    for (const Shape& shape : {Shape{128, 32, 8, 2, 2, 1500, 32},
                               {128, 32, 4, 2, 4, 1500, 32},  // two sets a KV head
                               {96, 24, 4, 2, 2, 1500, 8},
                               {64, 16, 12, 4, 4, 700, 17},
                               {256, 32, 2, 1, 1, 300, 3}}) {
        Lab lab(shape);
        for (const int32_t n_row : {16, 300, 1500}) {
            const RowCounts counts = lab.check_cached(n_step, n_row, {200, 4, 32});
            CHECK(counts.hit > 0);
            CHECK(counts.hit + counts.missed == uint64_t{200} * static_cast<uint64_t>(n_step * shape.n_set));
        }
    }
}

TEST(cuda_attend_best_leaves_what_it_cannot) {
    Lab lab({64, 16, 4, 2, 2, 100, 8});
    DeviceArray<float> x(4 * 64);
    DeviceArray<int32_t> list(2 * 16);
    const Selection lists{list.data(), list.data(), 2, 16};
    const cuda::Past past{nullptr, 0, 100, 100};
    const cuda::BestTask task{x.data(), x.data(), 1, 4, 2, x.data(), lab.view(), past, {16, 0, 0}, lists};
    auto other = task;
    other.kv.n_dom = 10;
    CHECK(!lab.op().takes(other));
    CHECK(!Lab({64, 16, 4, 2, 2, 100, 3}).op().takes(task));  // blocks alone
    other = task;
    other.kv.head_dim = 80;
    CHECK(!lab.op().takes(other));
    other = task;
    other.kv.n_ctx = 99;
    CHECK(!lab.op().takes(other));
    other = task;
    other.past = {nullptr, 0, 1 << 20, 1 << 20};
    CHECK(!lab.op().takes(other));
    other = task;
    other.budget.keep = 17;
    CHECK_THROWS(lab.op().run(other, nullptr), FASA_ERROR_ARGUMENT, "17", "16");
    other = task;
    other.selection.n_set = 4;
    CHECK_THROWS(lab.op().run(other, nullptr), FASA_ERROR_ARGUMENT, "4 query heads");
}
