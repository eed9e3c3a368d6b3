// Selection by the CUDA backend against the CPU's: equal lists for equal scores.
#include <cmath>
#include <limits>
#include <random>

#include "backend/cpu/topk.h"
#include "backend/cuda/topk.h"
#include "check.h"
#include "device_array.h"

using namespace fasa;
using fasa::test::DeviceArray;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

struct Lists {
    std::vector<int32_t> positions, count;

    bool operator==(const Lists& other) const {
        if (count != other.count) return false;
        const size_t capacity = positions.size() / count.size();
        for (size_t set = 0; set < count.size(); ++set) {
            const auto a = positions.begin() + set * capacity, b = other.positions.begin() + set * capacity;
            if (!std::equal(a, a + count[set], b)) return false;
        }
        return true;
    }
};

// Scores of n_set sets, on the device, and what both backends choose of them.
class Lab {
   public:
    Lab(int32_t n_set, int32_t n_ctx)
        : n_set_(n_set), n_ctx_(n_ctx), scores_(size_t{1} * n_set * n_ctx), step_(1), memory_(scratch_bytes()) {
        memory_.set(std::vector<uint8_t>(memory_.size(), 0xab));
        Arena arena(memory_.data());
        scratch_ = cuda::RankScratch::take(arena, n_set, n_ctx);
        scratch_.clear(n_set, nullptr);
    }

    void set(const std::vector<float>& scores) {
        host_ = scores;
        scores_.set(scores);
    }
    Lists chosen(int32_t n_pos, int32_t n_pos_max, const Budget& budget, int32_t capacity, bool by_step) {
        DeviceArray<int32_t> positions(size_t{1} * n_set_ * capacity), count(static_cast<size_t>(n_set_));
        Selection selection{positions.data(), count.data(), n_set_, capacity};
        step_.set({{1, n_pos - 1}});
        const cuda::Past past{step_.data(), 0, by_step ? -1 : n_pos, n_pos_max};
        cuda::topk(selection, scores_.data(), n_ctx_, past, budget, scratch_, false, nullptr);
        return {positions.host(), count.host()};
    }
    Lists expected(int32_t n_pos, const Budget& budget, int32_t capacity) {
        Team team(1);
        cpu::TopK topk(team, {1, 1, n_set_, n_set_, 2, n_ctx_});
        Lists lists{std::vector<int32_t>(size_t{1} * n_set_ * capacity), std::vector<int32_t>(n_set_)};
        Selection selection{lists.positions.data(), lists.count.data(), n_set_, capacity};
        topk.run(host_.data(), n_pos, budget.keep, budget.n_sink, budget.n_recent, selection);
        return lists;
    }
    void check(int32_t n_pos, int32_t n_pos_max, const Budget& budget, int32_t capacity) {
        const Lists want = expected(n_pos, budget, capacity);
        by_step_ = !by_step_;  // told the number of positions, or where to read it, in turns
        CHECK(chosen(n_pos, n_pos_max, budget, capacity, by_step_) == want);
    }
    int32_t n_ctx() const { return n_ctx_; }
    size_t n_scores() const { return scores_.size(); }

   private:
    size_t scratch_bytes() const {
        Arena measure;
        cuda::RankScratch::take(measure, n_set_, n_ctx_);
        return measure.used();
    }

    int32_t n_set_, n_ctx_;
    bool by_step_ = false;
    std::vector<float> host_;
    DeviceArray<float> scores_;
    DeviceArray<cuda::Step> step_;
    DeviceArray<uint8_t> memory_;
    cuda::RankScratch scratch_;
};

struct Kind {
    const char* name;
    float (*score)(std::mt19937& random, size_t i);
};

float normal(std::mt19937& random) { return std::normal_distribution<float>()(random); }

const Kind kinds[] = {
    {"normal", [](std::mt19937& random, size_t) { return normal(random); }},
    {"many ties", [](std::mt19937& random, size_t) { return std::round(normal(random) * 2); }},
    {"not finite",
     [](std::mt19937& random, size_t i) {
         return i % 7 ? normal(random) : i % 2 ? NAN : i % 3 ? infinity : -infinity;
     }},
    {"far from 0", [](std::mt19937& random, size_t) { return 3000 + normal(random); }},
    {"both zeros", [](std::mt19937& random, size_t) { return random() % 2 ? 0.0f : -0.0f; }},
    {"huge", [](std::mt19937& random,
                size_t) { return 1e38f * (random() % 2 ? 1.0f : -1.0f) * static_cast<float>(random() % 4); }},
    {"tiny", [](std::mt19937& random, size_t) { return 1e-42f * static_cast<float>(random() % 1000); }},
    {"a few that stand out",
     [](std::mt19937& random, size_t i) { return i % 211 ? 1e-3f * normal(random) : 1e4f * normal(random); }},
    {"mostly evicted",
     [](std::mt19937& random, size_t) { return random() % 50 ? -infinity : std::fabs(normal(random)); }},
    {"ever better", [](std::mt19937&, size_t i) { return static_cast<float>(i); }},
    {"equal", [](std::mt19937&, size_t) { return 1.0f; }},
    {"NaN", [](std::mt19937&, size_t) { return static_cast<float>(NAN); }},
    {"infinite", [](std::mt19937&, size_t i) { return i % 5 ? infinity : 0.0f; }},
};

void fill(Lab& lab, const Kind& kind, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<float> scores(lab.n_scores());
    for (size_t i = 0; i < scores.size(); ++i) scores[i] = kind.score(random, i);
    lab.set(scores);
}

}  // namespace

TEST(cuda_topk_of_short_rows) {
    Lab lab(3, 3001);
    for (const Kind& kind : kinds) {
        fill(lab, kind, 1);
        const int before = check::failures;
        for (const int32_t n_pos : {1, 256, 3001}) {
            for (const Budget& budget :
                 {Budget{1, 0, 0}, {1, 4, 32}, {36, 4, 32}, {256, 4, 32}, {290, 0, 1}, {290, 300, 300}, {3001, 0, 0}}) {
                lab.check(n_pos, 3001, budget, 3001);
            }
        }
        check::report(check::failures == before, __FILE__, __LINE__, kind.name);
    }
}

TEST(cuda_topk_of_long_rows) {
    Lab lab(2, 16011);
    for (const Kind& kind : kinds) {
        fill(lab, kind, 2);
        const int before = check::failures;
        for (const int32_t n_pos : {9001, 16011}) {
            for (const Budget& budget : {Budget{1, 0, 0}, {256, 4, 32}, {4000, 100, 0}}) {
                lab.check(n_pos, 16011, budget, 5000);
            }
        }
        lab.check(1, 16011, {256, 4, 32}, 5000);
        lab.check(16011, 16011, {16011, 4, 32}, 16011);
        lab.check(16011, 16011, {16011, 4, 32}, 300);  // no more than the lists hold
        check::report(check::failures == before, __FILE__, __LINE__, kind.name);
    }
}

TEST(cuda_topk_of_many_sets) {
    for (const int32_t n_set : {1, 64}) {
        Lab lab(n_set, 8300);
        fill(lab, kinds[0], 3);
        lab.check(8300, 8300, {256, 4, 32}, 256);
        lab.check(700, 8192, {16, 0, 3}, 256);
    }
}

TEST(cuda_topk_of_a_very_long_row) {
    Lab lab(1, 300000);  // more masks than the last block takes at once
    for (const int i : {0, 1}) {
        fill(lab, kinds[i], 4);
        lab.check(299999, 300000, {16384, 4, 32}, 16384);
    }
}
