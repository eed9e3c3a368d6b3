// Scores of the CUDA backend against the CPU's, over odd shapes, and selections that start from their counts.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "backend/cpu/elementwise_kernels.h"
#include "backend/cpu/topk.h"
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

struct Shape {
    int32_t head_dim, n_dom, n_head, n_head_kv, n_set, n_ctx;
    bool mask = false;
    DomType type = DomType::f16;  // other than f16: n_dom dims are coded, and keys lie whole in `rest`

    int32_t n_apart() const { return type == DomType::f16 ? n_dom : 0; }
};

// A cache of random keys and the queries of one row.
struct Lab {
    explicit Lab(const Shape& shape)
        : s(shape),
          q(random_floats(int64_t{s.n_head} * s.head_dim, 1)),
          dom(halves(int64_t{s.n_apart()}, 2)),
          rest(halves(2 * int64_t{s.head_dim} - s.n_apart(), 3)),
          scale(n_rows()),
          code(n_rows() * static_cast<size_t>(code_bytes(s.type, s.n_dom))),
          device_q(q),
          device_dom(dom),
          device_rest(rest),
          device_scale(scale),
          device_code(code.size() + 16),
          device_mask(random_mask()),
          scores(size_t{1} * s.n_set * s.n_ctx),
          step(1) {
        step.set({{seq, 0}});
        if (s.type != DomType::f16) encode_all();
    }

    KvView view() const {
        KvView kv{device_dom.data(), device_rest.data(), nullptr, s.n_ctx, s.n_head_kv, s.head_dim, s.n_apart()};
        if (s.type != DomType::f16) kv.codes = {s.type, s.n_dom, device_code.data() + code_offset, device_scale.data()};
        return kv;
    }
    // Codes and scales of all rows, those on the device from code_offset on.
    void encode_all() {
        for (size_t row = 0; row < n_rows(); ++row) {
            const KeyCodes at = host_codes().at(static_cast<int64_t>(row));
            cpu::scalar::elementwise.encode(at.code, at.scale, &rest[row * 2 * s.head_dim], s.type, s.n_dom);
        }
        std::vector<uint8_t> bytes(device_code.size());
        std::copy(code.begin(), code.end(), bytes.begin() + code_offset);
        device_code.set(bytes);
        device_scale.set(scale);
    }
    KeyCodes host_codes() { return {s.type, s.n_dom, code.data(), scale.data()}; }
    size_t n_rows() const { return size_t{n_seq} * s.n_head_kv * s.n_ctx; }
    double key(int64_t row, int32_t d, bool whole_key) const {
        const int64_t width = 2 * int64_t{s.head_dim} - s.n_apart();
        if (s.type == DomType::f16 || whole_key) {
            const bool is_apart = d < s.n_apart();
            return half_to_float(is_apart ? dom[row * s.n_dom + d] : rest[row * width + d - s.n_apart()]);
        }
        const uint8_t* at = code.data() + row * code_bytes(s.type, s.n_dom);
        const int found = s.type == DomType::q4 ? (at[d / 2] >> (d % 2 * 4) & 15) - 8 : static_cast<int8_t>(at[d]);
        return found * double{half_to_float(scale[row])};
    }
    SetQueries queries() const { return {device_q.data(), s.mask ? device_mask.data() : nullptr, s.n_head, s.n_set}; }
    cuda::Past past(int32_t n_pos, bool by_step) {
        if (!by_step) return {nullptr, seq, n_pos, n_pos};
        step.set({{seq, n_pos - 1}});
        return {step.data(), 0, -1, s.n_ctx};
    }
    float summed(int32_t set, int32_t d) const {
        float sum = 0;
        for (int32_t head = set * s.n_head / s.n_set; head < (set + 1) * s.n_head / s.n_set; ++head) {
            sum += s.mask && !mask[size_t{1} * head * s.head_dim + d] ? 0.0f : q[size_t{1} * head * s.head_dim + d];
        }
        return sum;
    }
    // Exact, and how far float sums may be off: a rounding per term of the sum of magnitudes.
    double score(int32_t set, int32_t pos, bool whole_key, double& off) const {
        const int64_t row = (int64_t{seq} * s.n_head_kv + int64_t{set} * s.n_head_kv / s.n_set) * s.n_ctx + pos;
        double sum = 0, magnitude = 0;
        for (int32_t d = 0; d < (whole_key ? s.head_dim : s.n_dom); ++d) {
            const double term = double{summed(set, d)} * key(row, d, whole_key);
            sum += term;
            magnitude += std::fabs(term);
        }
        off = 1e-6 + magnitude * s.head_dim * 0x1p-24;
        return sum;
    }
    void check_scores(int32_t n_pos, bool whole_key, bool by_step) {
        constexpr float untouched = 12345.0f;
        scores.set(std::vector<float>(scores.size(), untouched));
        cuda::token_scores(scores.data(), queries(), view(), past(n_pos, by_step), whole_key, nullptr, nullptr);
        const auto found = scores.host();
        double worst = 0;
        bool is_clean = true;
        for (int32_t set = 0; set < s.n_set; ++set) {
            for (int32_t pos = 0; pos < s.n_ctx; ++pos) {
                const float score_found = found[size_t{1} * set * s.n_ctx + pos];
                if (pos >= n_pos) {
                    is_clean &= score_found == untouched;
                    continue;
                }
                double off;
                const double expected = score(set, pos, whole_key, off);
                worst = std::max(worst, std::isnan(score_found) ? 1e9 : std::fabs(score_found - expected) / off);
            }
        }
        CHECK_NEAR(worst, 0.0, 1.0);
        CHECK(is_clean);
    }

    Shape s;
    std::vector<float> q;
    std::vector<uint16_t> dom, rest, scale;
    std::vector<uint8_t> code, mask;
    int code_offset = 0;  // bytes that spoil the alignment of the codes on the device
    DeviceArray<float> device_q;
    DeviceArray<uint16_t> device_dom, device_rest, device_scale;
    DeviceArray<uint8_t> device_code, device_mask;
    DeviceArray<float> scores;
    DeviceArray<cuda::Step> step;

   private:
    std::vector<uint16_t> halves(int64_t width, unsigned seed) const {
        std::vector<uint16_t> bits;
        for (const float x : random_floats(n_seq * int64_t{s.n_head_kv} * s.n_ctx * width, seed)) {
            bits.push_back(float_to_half(x));
        }
        return bits;
    }
    std::vector<uint8_t> random_mask() {
        std::mt19937 random(4);
        for (int64_t i = 0; i < int64_t{s.n_head} * s.head_dim; ++i) mask.push_back(random() % 3 == 0);
        return mask;
    }
};

// What launch() starts, captured once.
class Graph {
   public:
    template <class F>
    explicit Graph(F&& launch) {
        cuda::check(cudaStreamCreate(&stream_), "stream");
        cuda::check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
        launch(stream_);
        cudaGraph_t graph = nullptr;
        cuda::check(cudaStreamEndCapture(stream_, &graph), "capture");
        cuda::check(cudaGraphInstantiate(&exec_, graph, 0), "graph");
        cuda::check(cudaGraphDestroy(graph), "graph");
    }
    ~Graph() {
        cudaGraphExecDestroy(exec_);
        cudaStreamDestroy(stream_);
    }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    void replay() { cuda::check(cudaGraphLaunch(exec_, stream_), "replay"); }

   private:
    cudaStream_t stream_ = nullptr;
    cudaGraphExec_t exec_ = nullptr;
};

}  // namespace

TEST(cuda_scores_of_dominant_dims) {
    for (const auto& [head_dim, n_dom] : {std::pair{128, 32},
                                          {128, 16},
                                          {64, 8},
                                          {96, 24},
                                          {80, 40},
                                          {128, 64},
                                          {256, 128},
                                          {256, 256},
                                          {80, 20},
                                          {10, 2},
                                          {20, 6},
                                          {512, 512}}) {
        Lab lab({head_dim, n_dom, 4, 2, 2, 700});
        lab.check_scores(700, false, true);
        lab.check_scores(1, false, false);
        lab.check_scores(333, false, false);
    }
}

TEST(cuda_scores_of_codes) {
    for (const DomType type : {DomType::int8, DomType::q4}) {
        for (const auto& [head_dim, n_dom] : {std::pair{128, 32},
                                              {128, 16},
                                              {96, 48},
                                              {128, 64},
                                              {80, 80},
                                              {128, 96},
                                              {128, 112},
                                              {128, 128},
                                              {256, 144},
                                              {64, 8},
                                              {80, 40},
                                              {80, 20},
                                              {10, 2},
                                              {20, 6},
                                              {512, 512}}) {
            Lab lab({head_dim, n_dom, 4, 2, 2, 700, false, type});
            lab.check_scores(700, false, true);
            lab.check_scores(1, false, false);
            lab.check_scores(333, false, false);
            lab.check_scores(130, true, false);  // whole keys are read where they lie
            if (n_dom % 16 == 0) {
                lab.code_offset = 4;  // not to be read by words
                lab.encode_all();
                lab.check_scores(77, false, true);
            }
        }
        Lab masked({64, 16, 8, 2, 8, 130, true, type});
        masked.check_scores(130, false, true);
    }
}

// One block has more of a set than its ring holds, and its last batch is not whole.
TEST(cuda_scores_of_codes_in_rings) {
    for (const auto& [type, n_dom] :
         {std::pair{DomType::q4, 16}, {DomType::q4, 32}, {DomType::q4, 48}, {DomType::int8, 32}, {DomType::int8, 64}}) {
        Lab lab({64, n_dom, 200, 1, 200, 3402, false, type});
        lab.check_scores(3401, false, true);
    }
}

TEST(cuda_scores_of_codes_of_few_or_odd_positions) {
    for (const DomType type : {DomType::int8, DomType::q4}) {
        Lab lab({64, 32, 6, 2, 2, 700, false, type});
        for (const int32_t n_pos : {1, 2, 15, 16, 63, 64, 65, 511, 513, 699}) lab.check_scores(n_pos, false, true);
        Lab odd({64, 32, 4, 2, 2, 701, false, type});  // its second head's rows cannot be read by words
        odd.check_scores(701, false, true);
    }
}

// Queries count with the 22 leading bits of a set's largest dim, whatever its size: scores are exact up to 1e-5 of the
// largest one.
TEST(cuda_scores_of_codes_by_queries_of_any_size) {
    for (const DomType type : {DomType::int8, DomType::q4}) {
        for (const float size : {1e-30f, 1e-20f, 1e-3f, 3000.0f, 1e20f, 1e30f}) {
            for (const float spread : {1.0f, 1e-4f}) {  // of the dims but one
                Lab lab({64, 48, 4, 2, 2, 200, false, type});
                for (size_t i = 0; i < lab.q.size(); ++i) lab.q[i] *= i % 64 == 7 ? size : size * spread;
                lab.device_q.set(lab.q);
                cuda::token_scores(lab.scores.data(), lab.queries(), lab.view(), lab.past(200, false), false, nullptr,
                                   nullptr);
                const auto found = lab.scores.host();
                double largest = 0, worst = 0;
                for (int32_t i = 0; i < 400; ++i) {
                    double off;
                    const double expected = lab.score(i / 200, i % 200, false, off);
                    largest = std::max(largest, std::fabs(expected));
                    worst = std::max(worst, std::isnan(found[i]) ? HUGE_VAL : std::fabs(found[i] - expected));
                }
                CHECK(worst < 1e-5 * largest);
            }
        }
    }
}

// What is smaller than those bits is lost where tensor cores multiply, which shows that they do, and is not elsewhere.
TEST(cuda_scores_of_codes_on_tensor_cores) {
    for (const DomType type : {DomType::int8, DomType::q4}) {
        for (int32_t n_dom = 8; n_dom <= 144; n_dom += 8) {
            for (const int offset : {0, 4}) {
                Lab lab({144, n_dom, 1, 1, 1, 200, false, type});
                lab.code_offset = offset;
                lab.encode_all();
                std::vector<float> q(144, 0x1p-30f);
                q[1] = -1.0f;
                lab.device_q.set(q);
                cuda::token_scores(lab.scores.data(), lab.queries(), lab.view(), lab.past(200, false), false, nullptr,
                                   nullptr);
                const auto found = lab.scores.host();
                bool is_one_dim = true;
                for (int32_t i = 0; i < 200; ++i) is_one_dim &= found[i] == -lab.key(200 * seq + i, 1, false);
                const bool fits = n_dom % 16 == 0 ? n_dom <= 128 : type == DomType::int8 && n_dom > 16 && n_dom < 64;
                CHECK(is_one_dim == (offset == 0 && fits));
            }
        }
    }
}

TEST(cuda_scores_of_codes_by_queries_without_size) {
    for (const DomType type : {DomType::int8, DomType::q4}) {
        Lab lab({64, 32, 2, 2, 2, 100, false, type});
        for (const float value : {0.0f, NAN, INFINITY, -INFINITY}) {
            auto q = lab.q;
            std::fill(q.begin(), q.begin() + 64, 0.0f);
            q[5] = value;  // of the first set
            lab.device_q.set(q);
            cuda::token_scores(lab.scores.data(), lab.queries(), lab.view(), lab.past(100, false), false, nullptr,
                               nullptr);
            const auto found = lab.scores.host();
            for (int32_t i = 0; i < 200; ++i) {
                CHECK(i < 100 ? (value == 0.0f ? found[i] == 0.0f : std::isnan(found[i])) : std::isfinite(found[i]));
            }
        }
    }
}

TEST(cuda_scores_of_keys_that_are_not_finite) {
    for (const DomType type : {DomType::int8, DomType::q4}) {
        Lab lab({64, 16, 2, 2, 2, 100, false, type});
        const int64_t row = int64_t{seq} * 2 * 100;  // of the first head
        lab.rest[(row + 7) * 128 + 3] = 0x7e00;
        lab.rest[(row + 9) * 128 + 5] = 0x7c00;
        lab.encode_all();
        cuda::token_scores(lab.scores.data(), lab.queries(), lab.view(), lab.past(100, false), false, nullptr, nullptr);
        const auto found = lab.scores.host();
        for (int32_t i = 0; i < 200; ++i) CHECK(std::isnan(found[i]) == (i == 7 || i == 9));
    }
}

TEST(cuda_scores_of_whole_keys) {
    for (const auto& [head_dim, n_dom] : {std::pair{128, 32}, {128, 0}, {80, 20}, {20, 6}, {10, 0}, {64, 64}, {7, 2}}) {
        Lab lab({head_dim, n_dom, 6, 2, 6, 300, true});
        lab.check_scores(300, true, false);
        lab.check_scores(299, true, true);
    }
}

TEST(cuda_scores_of_sets) {
    for (const Shape& shape : {Shape{64, 16, 8, 2, 2, 130, true},
                               {64, 16, 8, 2, 8, 130, true},
                               {64, 16, 8, 2, 4, 130},
                               {64, 16, 5, 1, 1, 130},
                               {32, 32, 4, 4, 1, 130}}) {
        Lab lab(shape);
        lab.check_scores(130, false, true);
        DeviceArray<float> sums(size_t{1} * shape.n_set * shape.head_dim);
        cuda::sum_queries(sums.data(), lab.queries(), shape.head_dim, nullptr);
        const auto found = sums.host();
        for (int32_t i = 0; i < shape.n_set * shape.head_dim; ++i) {
            CHECK(found[i] == lab.summed(i / shape.head_dim, i % shape.head_dim));
        }
    }
    CHECK_THROWS(cuda::sum_queries(nullptr, {nullptr, nullptr, 6, 4}, 64, nullptr), FASA_ERROR_ARGUMENT, "6 heads",
                 "4");
}

TEST(cuda_scores_hand_on_what_is_not_a_number) {
    Lab lab({64, 16, 2, 2, 2, 100});
    auto dom = lab.dom;
    const int64_t row = int64_t{seq} * 2 * 100;  // of the first head
    dom[(row + 7) * 16 + 3] = 0x7e00;
    dom[(row + 9) * 16 + 5] = 0x7c00;
    lab.device_dom.set(dom);
    cuda::token_scores(lab.scores.data(), lab.queries(), lab.view(), lab.past(100, false), false, nullptr, nullptr);
    const auto found = lab.scores.host();
    for (int32_t i = 0; i < 200; ++i) CHECK(std::isnan(found[i]) == (i == 7) && std::isinf(found[i]) == (i == 9));
}

// The list is what the CPU chooses by the same scores, in every replay.
TEST(cuda_scores_count_for_topk) {
    for (const auto& [head_dim, n_dom, whole_key, type] : {std::tuple{64, 32, false, DomType::f16},
                                                           {64, 8, false, DomType::f16},
                                                           {128, 128, false, DomType::f16},
                                                           {20, 6, true, DomType::f16},
                                                           {64, 32, false, DomType::int8},
                                                           {64, 48, false, DomType::int8},
                                                           {64, 16, false, DomType::q4},
                                                           {64, 32, false, DomType::q4},
                                                           {20, 6, false, DomType::q4}}) {
        Lab lab({head_dim, n_dom, 4, 2, 2, 9500, false, type});
        Arena measure;
        cuda::RankScratch::take(measure, 2, 9500);
        DeviceArray<uint8_t> memory(measure.used());
        memory.set(std::vector<uint8_t>(memory.size(), 0xab));
        Arena arena(memory.data());
        const cuda::CountFor count_for{{256, 4, 32}, cuda::RankScratch::take(arena, 2, 9500)};
        count_for.scratch.clear(2, nullptr);
        DeviceArray<int32_t> positions(2 * 256), count(2);
        Selection selection{positions.data(), count.data(), 2, 256};
        const cuda::Past past = lab.past(1, true);
        const bool whole = whole_key;
        Graph graph([&](cudaStream_t stream) {
            cuda::token_scores(lab.scores.data(), lab.queries(), lab.view(), past, whole, &count_for, stream);
            cuda::topk(selection, lab.scores.data(), 9500, past, count_for.budget, count_for.scratch, true, stream);
        });
        Team team(1);
        cpu::TopK topk(team, {1, 1, 4, 2, head_dim, 9500});
        for (const int32_t n_pos : {100, 9500, 4097, 9500}) {
            lab.past(n_pos, true);
            graph.replay();
            std::vector<int32_t> expected(2 * 256), n_expected(2);
            Selection wanted{expected.data(), n_expected.data(), 2, 256};
            topk.run(lab.scores.host().data(), n_pos, 256, 4, 32, wanted);
            CHECK(count.host() == n_expected);
            const auto found = positions.host();
            for (int set = 0; set < 2; ++set) {
                const auto list = found.begin() + set * 256;
                CHECK(std::equal(list, list + n_expected[set], wanted.list(set)));
            }
        }
    }
    const cuda::RankScratch none;
    Selection narrow{nullptr, nullptr, 1, 10};
    CHECK_THROWS(cuda::topk(narrow, nullptr, 0, {nullptr, 0, 9000, 9000}, {11, 0, 0}, none, true, nullptr),
                 FASA_ERROR_ARGUMENT, "11", "10");
}
