// Decode's attention on the device against double precision: odd lengths, shapes and groups, splits, lists, NaN,
// repeated and replayed launches.
#include "backend/cuda/attention_decode.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>

#include "base/half.h"
#include "check.h"
#include "cuda/device_array.h"
#include "random_weights.h"

using namespace fasa;
using cuda::AttentionDecode, test::DeviceArray, test::random_floats;

namespace {

// Scores are about +-8 and values reach 4. In single precision that is an error of 3e-6 (what plain C++ gives); tensor
// cores cut off the sums of each of 4 to 16 steps at about 2^-23 of their size. Halves alone would be off by 1e-4.
constexpr double tolerance = 4e-5;
constexpr int n_seq = 2, seq = 1;
constexpr uint16_t half_nan = 0x7e01;

struct Shape {
    int head_dim, n_dom;
    int n_head_kv = 2, group = 4;
    int n = 1;       // rows
    int n_pos = 40;  // that the last row sees
    int n_sm = 6;
    size_t shared_bytes = 227 << 10;
    uintptr_t shift = 0;  // halves that the planes are moved from an aligned address

    int n_head() const { return n_head_kv * group; }
    int pos0() const { return n_pos - n; }
    float scale() const { return 2 / std::sqrt(static_cast<float>(head_dim)); }
};

// A cache, queries and what attention needs besides, on host and device. What no row may see is NaN.
class Lab {
   public:
    explicit Lab(const Shape& of)
        : shape(of),
          n_ctx(of.n_pos + 3),
          dom(halves(of.n_dom, 1)),
          rest(halves(2 * of.head_dim - of.n_dom, 2)),
          q(random_floats(int64_t{of.n} * of.n_head() * of.head_dim, 3)),
          device_dom_(dom.size() + of.shift),
          device_rest_(rest.size() + of.shift),
          device_q_(q),
          y_(q.size()),
          step_(1),
          scratch_(scratch_bytes()),
          attention_(AttentionDecode::Gpu{of.n_sm, of.shared_bytes}, scratch()) {
        cuda::check(cudaMemset(scratch_.data(), 0, scratch_.size()), "zeros");
        upload();
        set_step(of.pos0());
    }

    void upload() {
        const auto copy = [&](const DeviceArray<uint16_t>& to, const std::vector<uint16_t>& from) {
            cuda::check(cudaMemcpy(to.data() + shape.shift, from.data(), 2 * from.size(), cudaMemcpyHostToDevice),
                        "kv");
        };
        copy(device_dom_, dom);
        copy(device_rest_, rest);
        device_q_.set(q);
        y_.set(std::vector<float>(y_.size(), -777.0f));
    }
    void set_step(int32_t pos0) { step_.set({{seq, pos0}}); }

    void launch_dense(int n_pos_max, cudaStream_t stream = nullptr) {
        attention_.dense(y_.data(), device_q_.data(), shape.n_head(), shape.scale(), view(), step_.data(), shape.n,
                         n_pos_max, stream);
    }
    std::vector<float> dense() {
        launch_dense(shape.n_pos);
        return y_.host();
    }
    std::vector<float> selected(const Selection& selection, int n_pos_max) {
        attention_.selected(y_.data(), device_q_.data(), shape.n_head(), shape.scale(), view(), step_.data(), selection,
                            n_pos_max, nullptr);
        return y_.host();
    }
    std::vector<float> y() const { return y_.host(); }
    bool counters_are_zero() {
        std::vector<uint8_t> all = scratch_.host();
        const auto* counter = reinterpret_cast<const uint8_t*>(scratch().counter);
        const auto* from = all.data() + (counter - scratch_.data());
        return std::all_of(from, from + sizeof(unsigned) * static_cast<size_t>(shape.n_sm), [](int b) { return !b; });
    }

    // One head of one row over listed positions.
    std::vector<double> exact(int row, int head, const std::vector<int32_t>& positions) const {
        const int head_dim = shape.head_dim, head_kv = head / shape.group;
        const float* query = &q[(static_cast<size_t>(row) * shape.n_head() + head) * head_dim];
        std::vector<double> score, sum(static_cast<size_t>(head_dim));
        for (const int32_t pos : positions) {
            double dot = 0;
            for (int d = 0; d < head_dim; ++d) dot += double{query[d]} * half_to_float(*at(head_kv, pos, d));
            score.push_back(dot * shape.scale());
        }
        const double top = *std::max_element(score.begin(), score.end());
        double total = 0;
        for (double& s : score) total += s = std::exp(s - top);
        for (size_t j = 0; j < positions.size(); ++j) {
            for (int d = 0; d < head_dim; ++d) {
                sum[d] += score[j] / total * half_to_float(*at(head_kv, positions[j], head_dim + d));
            }
        }
        return sum;
    }
    // The d-th number of a position: its key, then its value.
    const uint16_t* at(int head_kv, int pos, int d) const {
        const size_t row = static_cast<size_t>((seq * shape.n_head_kv + head_kv) * n_ctx + pos);
        const int n_dom = shape.n_dom;
        return d < n_dom ? &dom[row * n_dom + d] : &rest[row * (2 * shape.head_dim - n_dom) + d - n_dom];
    }
    uint16_t* at(int head_kv, int pos, int d) {
        return const_cast<uint16_t*>(std::as_const(*this).at(head_kv, pos, d));
    }

    const Shape shape;
    const int n_ctx;
    std::vector<uint16_t> dom, rest;
    std::vector<float> q;

   private:
    std::vector<uint16_t> halves(int row_values, unsigned seed) const {
        const int64_t n_rows = int64_t{n_seq} * shape.n_head_kv * n_ctx;
        std::vector<uint16_t> result(static_cast<size_t>(n_rows * row_values), half_nan);
        const auto values = random_floats(static_cast<int64_t>(result.size()), seed);
        for (int64_t row = seq * shape.n_head_kv * n_ctx; row < n_rows; ++row) {
            if (row % n_ctx >= shape.n_pos) continue;
            for (int64_t i = row * row_values; i < (row + 1) * row_values; ++i) result[i] = float_to_half(values[i]);
        }
        return result;
    }
    KvView view() const {
        KvView kv;
        kv.dom = device_dom_.data() + shape.shift;
        kv.rest = device_rest_.data() + shape.shift;
        kv.n_ctx = n_ctx;
        kv.n_head_kv = shape.n_head_kv;
        kv.head_dim = shape.head_dim;
        kv.n_dom = shape.n_dom;
        return kv;
    }
    size_t scratch_bytes() const {
        Arena arena;
        AttentionDecode::Scratch::take(arena, shape.n_sm, shape.head_dim);
        return arena.used();
    }
    AttentionDecode::Scratch scratch() const {
        Arena arena(scratch_.data());
        return AttentionDecode::Scratch::take(arena, shape.n_sm, shape.head_dim);
    }

    DeviceArray<uint16_t> device_dom_, device_rest_;
    DeviceArray<float> device_q_, y_;
    DeviceArray<cuda::Step> step_;
    DeviceArray<uint8_t> scratch_;
    AttentionDecode attention_;
};

std::vector<int32_t> first_positions(int n) {
    std::vector<int32_t> all(static_cast<size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    return all;
}

// Lists on the device, set by set; what follows a list must not matter.
struct Lists {
    std::vector<std::vector<int32_t>> positions;
    DeviceArray<int32_t> device_positions, device_count;
    Selection selection;

    Lists(const std::vector<std::vector<int32_t>>& lists, int capacity)
        : positions(lists),
          device_positions(flat(lists, capacity)),
          device_count(counts(lists)),
          selection{device_positions.data(), device_count.data(), static_cast<int32_t>(lists.size()), capacity} {}

    static std::vector<int32_t> flat(const std::vector<std::vector<int32_t>>& lists, int capacity) {
        std::vector<int32_t> all(lists.size() * static_cast<size_t>(capacity), std::numeric_limits<int32_t>::max());
        for (size_t set = 0; set < lists.size(); ++set) {
            std::copy(lists[set].begin(), lists[set].end(), all.begin() + static_cast<int64_t>(set) * capacity);
        }
        return all;
    }
    static std::vector<int32_t> counts(const std::vector<std::vector<int32_t>>& lists) {
        std::vector<int32_t> count;
        for (const auto& list : lists) count.push_back(static_cast<int32_t>(list.size()));
        return count;
    }
    int longest() const {
        size_t n = 0;
        for (const auto& list : positions) n = std::max(n, list.size());
        return static_cast<int>(n);
    }
};

// count positions below n, ascending
std::vector<int32_t> some_positions(int n, int count, unsigned seed) {
    std::vector<int32_t> all = first_positions(n), chosen;
    std::sample(all.begin(), all.end(), std::back_inserter(chosen), count, std::mt19937(seed));
    return chosen;
}

std::string text_of(const Shape& s) {
    return "head_dim " + std::to_string(s.head_dim) + " n_dom " + std::to_string(s.n_dom) + " group " +
           std::to_string(s.group) + " rows " + std::to_string(s.n) + " n_pos " + std::to_string(s.n_pos) + " n_sm " +
           std::to_string(s.n_sm);
}

void check_head(const Lab& lab, const std::vector<float>& y, int row, int head, const std::vector<int32_t>& positions) {
    const auto expected = lab.exact(row, head, positions);
    const float* found = &y[static_cast<size_t>(row * lab.shape.n_head() + head) * lab.shape.head_dim];
    double worst = 0;
    for (int d = 0; d < lab.shape.head_dim; ++d) {
        const double difference = std::fabs(found[d] - expected[d]);
        worst = difference <= worst ? worst : difference;  // NaN stays
    }
    check::report(worst <= tolerance, __FILE__, __LINE__,
                  text_of(lab.shape) + ": row " + std::to_string(row) + " head " + std::to_string(head) +
                      " is off by " + std::to_string(worst));
}

void check_dense(const Shape& shape) {
    Lab lab(shape);
    const auto y = lab.dense();
    for (int row = 0; row < shape.n; ++row) {
        const auto positions = first_positions(shape.pos0() + row + 1);
        for (int head = 0; head < shape.n_head(); ++head) check_head(lab, y, row, head, positions);
    }
    CHECK(lab.counters_are_zero());
}

void check_selected(const Shape& shape, const Lists& lists) {
    Lab lab(shape);
    const auto y = lab.selected(lists.selection, lists.longest());
    const int heads_of_a_set = shape.n_head() / lists.selection.n_set;
    for (int head = 0; head < shape.n_head(); ++head) {
        check_head(lab, y, 0, head, lists.positions[static_cast<size_t>(head / heads_of_a_set)]);
    }
    CHECK(lab.counters_are_zero());
}

// Shapes for tensor cores, whole words and not, and for plain sums.
constexpr std::pair<int, int> dims[] = {{64, 0},   {80, 16}, {96, 10}, {128, 0},  {128, 32}, {128, 128},
                                        {256, 6},  {256, 0}, {80, 0},  {8, 0},    {32, 8},   {20, 6},
                                        {112, 16}, {2, 2},   {320, 2}, {1024, 0}, {64, 30},  {96, 96}};

}  // namespace

TEST(cuda_decode_attention_lengths) {
    int i = 0;
    for (const auto& [head_dim, n_dom] : dims) {
        for (const int n_pos : {1, 2, 16, 31, 257}) {
            const int group = std::vector{1, 3, 4, 7, 8}[i % 5], n_sm = std::vector{1, 5, 20}[i % 3];
            check_dense({.head_dim = head_dim,
                         .n_dom = n_dom,
                         .n_head_kv = i % 2 + 1,
                         .group = group,
                         .n_pos = n_pos,
                         .n_sm = n_sm});
            ++i;
        }
    }
}

TEST(cuda_decode_attention_groups_and_rows) {
    for (const auto& [head_dim, n_dom] : {std::pair{64, 16}, {128, 32}, {256, 0}, {24, 4}}) {
        for (const int group : {1, 2, 5, 9, 16}) check_dense({head_dim, n_dom, 1, group, 1, 75});
        for (const int n : {2, 3, 9}) {
            check_dense({head_dim, n_dom, 2, 3, n, n});
            check_dense({head_dim, n_dom, 1, 7, n, 50, 17});
        }
    }
    check_dense({96, 32, 2, 16, 1, 90});
    check_dense({80, 2, 1, 12, 2, 90});
}

TEST(cuda_decode_attention_many_splits) {
    check_dense({128, 32, 1, 4, 1, 1000, 1});
    check_dense({128, 0, 1, 8, 1, 1000, 132});
    check_dense({128, 0, 3, 2, 1, 1000, 8});
    check_dense({64, 0, 2, 12, 1, 1501, 9});
    check_dense({40, 8, 1, 2, 1, 1000, 132});
}

TEST(cuda_decode_attention_where_dims_do_not_come_in_pairs) {
    for (const auto& [head_dim, n_dom] : {std::pair{21, 6}, {21, 7}, {64, 5}, {128, 127}, {1, 0}, {1, 1}, {1023, 4}}) {
        check_dense({head_dim, n_dom, 2, 3, 1, 75});
        check_dense({head_dim, n_dom, 1, 2, 3, 50, 17});
    }
}

// GPUs with less shared memory take fewer warps a block, or plain sums.
TEST(cuda_decode_attention_little_shared_memory) {
    for (const size_t shared_bytes : {48 << 10, 64 << 10, 99 << 10}) {
        for (const auto& [head_dim, n_dom] : {std::pair{64, 0}, {128, 16}, {256, 0}, {36, 0}}) {
            check_dense({.head_dim = head_dim, .n_dom = n_dom, .n_pos = 300, .n_sm = 7, .shared_bytes = shared_bytes});
        }
    }
}

// Planes that begin anywhere in an aligned word.
TEST(cuda_decode_attention_unaligned_planes) {
    for (const auto& [head_dim, n_dom] : {std::pair{64, 0}, {128, 32}, {32, 8}}) {
        check_dense({.head_dim = head_dim, .n_dom = n_dom, .n_pos = 70, .shift = 2});
    }
}

TEST(cuda_decode_attention_selected) {
    for (const auto& [head_dim, n_dom] :
         {std::pair{128, 32}, {64, 0}, {80, 10}, {256, 64}, {32, 8}, {1024, 2}, {21, 7}}) {
        for (const int group : {1, 4, 16}) {
            const Shape shape = {.head_dim = head_dim, .n_dom = n_dom, .group = group, .n_pos = 400, .n_sm = 9};
            std::vector<std::vector<int32_t>> lists;
            for (const int count : {1, 130}) lists.push_back(some_positions(400, count, 7));
            check_selected(shape, Lists(lists, 400));
            lists.clear();
            for (int head = 0; head < shape.n_head(); ++head) {
                lists.push_back(some_positions(400, 1 + 23 * head % 97, static_cast<unsigned>(head)));
            }
            check_selected(shape, Lists(lists, 97));
        }
    }
}

// A list of all positions is dense attention, bit for bit, also when it is longer than was promised.
TEST(cuda_decode_attention_selected_equals_dense) {
    for (const int head_dim : {128, 48}) {
        Lab lab({.head_dim = head_dim, .n_dom = 16, .n_pos = 300});
        const Lists lists({first_positions(300), first_positions(300)}, 303);
        const auto dense = lab.dense();
        CHECK(lab.selected(lists.selection, 300) == dense);
        const auto underestimated = lab.selected(lists.selection, 20);
        double worst = 0;
        for (size_t i = 0; i < dense.size(); ++i)
            worst = std::max<double>(worst, std::fabs(underestimated[i] - dense[i]));
        CHECK_NEAR(worst, 0.0, tolerance);
    }
}

// Nothing of one launch may reach the next, whose lengths differ; equal launches give equal bits.
TEST(cuda_decode_attention_repeats) {
    for (const int head_dim : {128, 80, 24}) {
        Lab lab({.head_dim = head_dim, .n_dom = 8, .n_pos = 500, .n_sm = 11});
        std::vector<float> first[2];
        for (int repeat = 0; repeat < 3; ++repeat) {
            for (const int n_pos : {500, 33}) {
                lab.set_step(n_pos - 1);
                lab.launch_dense(512);
                const auto y = lab.y();
                auto& before = first[n_pos == 500];
                if (before.empty()) before = y;
                CHECK(y == before);
                for (int head = 0; head < lab.shape.n_head(); ++head) {
                    check_head(lab, y, 0, head, first_positions(n_pos));
                }
            }
        }
        CHECK(lab.counters_are_zero());
    }
}

// A captured launch serves later steps.
TEST(cuda_decode_attention_in_a_graph) {
    Lab lab({.head_dim = 64, .n_dom = 16, .n_pos = 200});
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    cuda::check(cudaStreamCreate(&stream), "stream");
    cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    lab.launch_dense(256, stream);
    cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
    cuda::check(cudaGraphInstantiate(&exec, graph), "graph");
    for (const int n_pos : {1, 17, 129, 200}) {
        lab.set_step(n_pos - 1);
        cuda::check(cudaGraphLaunch(exec, stream), "graph");
        cuda::check(cudaStreamSynchronize(stream), "graph");
        const auto y = lab.y();
        for (int head = 0; head < lab.shape.n_head(); ++head) check_head(lab, y, 0, head, first_positions(n_pos));
    }
    cuda::check(cudaGraphExecDestroy(exec), "graph");
    cuda::check(cudaGraphDestroy(graph), "graph");
    cuda::check(cudaStreamDestroy(stream), "stream");
}

// Queries beyond half precision's range, and far below it; one score far above all others, and one far below.
TEST(cuda_decode_attention_extreme_scores) {
    for (const int head_dim : {64, 16}) {
        for (const float size : {1e6f, 1e-30f}) {
            Lab lab({.head_dim = head_dim, .n_dom = 8, .n_pos = 150});
            for (float& value : lab.q) value = size;
            for (int d = 0; d < head_dim; ++d) {
                *lab.at(0, 50, d) = float_to_half(1000.0f);
                *lab.at(0, 3, d) = float_to_half(-60000.0f);
            }
            lab.upload();
            const auto y = lab.dense();
            for (int head = 0; head < lab.shape.n_head(); ++head) {
                if (head < lab.shape.group || size < 1) check_head(lab, y, 0, head, first_positions(150));
            }
        }
    }
}

// NaN reaches what it must, and nothing else.
TEST(cuda_decode_attention_nan) {
    const auto count_nan = [](const std::vector<float>& y, int head, int head_dim) {
        const float* from = &y[static_cast<size_t>(head * head_dim)];
        return std::count_if(from, from + head_dim, [](float v) { return std::isnan(v); });
    };
    for (const int head_dim : {128, 20}) {
        const Shape shape = {.head_dim = head_dim, .n_dom = 4, .n_pos = 100};
        Lab key(shape), value(shape), query(shape);
        *key.at(1, 70, 5) = half_nan;
        key.upload();
        *value.at(0, 99, head_dim + 7) = half_nan;
        value.upload();
        query.q[static_cast<size_t>(2 * head_dim + 1)] = NAN;
        query.upload();
        const auto key_y = key.dense(), value_y = value.dense(), query_y = query.dense();
        for (int head = 0; head < shape.n_head(); ++head) {
            CHECK(count_nan(key_y, head, head_dim) == (head / shape.group == 1 ? head_dim : 0));
            CHECK(count_nan(value_y, head, head_dim) == (head / shape.group == 0 ? 1 : 0));
            CHECK(count_nan(query_y, head, head_dim) == (head == 2 ? head_dim : 0));
        }
        CHECK(std::isnan(value_y[7]));
    }
}

TEST(cuda_decode_attention_bad_arguments) {
    CHECK_THROWS(Lab({.head_dim = 1026, .n_dom = 0}).dense(), FASA_ERROR_ARGUMENT, "head_dim 1026", "1024");
}
