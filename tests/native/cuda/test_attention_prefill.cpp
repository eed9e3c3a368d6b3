// Attention of prefill of the CUDA backend against double precision, and against itself: whatever the batches, ranges
// and kernels that work on several chunks at once, the bits are the same.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "backend/cuda/attention_prefill.h"
#include "base/half.h"
#include "check.h"
#include "device_array.h"
#include "random_weights.h"

using namespace fasa;
using fasa::cuda::PrefillRange;
using fasa::cuda::PrefillTuning;
using fasa::test::DeviceArray;

namespace {

constexpr int n_seq = 2, seq = 1;
constexpr PrefillTuning narrow = {false, false, 0}, wide = {true, false, 0}, unaligned = {false, true, 0};
constexpr PrefillTuning at_once = {false, false, 1000};  // blocks of several chunks side by side

struct Shape {
    int n_head, n_head_kv, head_dim, n_dom;
    int32_t n_ctx;
};

std::vector<uint16_t> random_halves(int64_t n, uint32_t seed) {
    std::vector<uint16_t> halves(static_cast<size_t>(n));
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    for (uint16_t& h : halves) h = float_to_half(normal(rng));
    return halves;
}

// A layer's cache of two sequences.
struct Cache {
    Shape s;
    std::vector<uint16_t> dom, rest;
    KvView view;

    explicit Cache(const Shape& shape, uint32_t seed = 1)
        : s(shape),
          dom(random_halves(int64_t{n_seq} * s.n_head_kv * s.n_ctx * s.n_dom, seed)),
          rest(random_halves(int64_t{n_seq} * s.n_head_kv * s.n_ctx * (2 * s.head_dim - s.n_dom), seed + 1)) {
        view.dom = dom.data();
        view.rest = rest.data();
        view.n_ctx = s.n_ctx;
        view.n_head_kv = s.n_head_kv;
        view.head_dim = s.head_dim;
        view.n_dom = s.n_dom;
    }
    Cache(const Cache&) = delete;
    Cache& operator=(const Cache&) = delete;

    float key(int head, int32_t pos, int d) const {
        return half_to_float(d < s.n_dom ? view.dom_at(seq, head, pos)[d] : view.rest_at(seq, head, pos)[d - s.n_dom]);
    }
    uint16_t& value_bits(int head, int32_t pos, int d) {
        return view.rest_at(seq, head, pos)[s.head_dim - s.n_dom + d];
    }
    float value(int head, int32_t pos, int d) const {
        return half_to_float(view.rest_at(seq, head, pos)[s.head_dim - s.n_dom + d]);
    }
    // Makes NaN of all positions from pos0 on.
    void forget_from(int32_t pos0) {
        for (int head = 0; head < s.n_head_kv; ++head) {
            for (int32_t pos = pos0; pos < s.n_ctx; ++pos) {
                std::fill_n(view.dom_at(seq, head, pos), s.n_dom, uint16_t{0x7e00});
                std::fill_n(view.rest_at(seq, head, pos), view.row_values(), uint16_t{0x7e00});
            }
        }
    }
};

// The device's copy of a cache, and calls on it.
class Lab {
   public:
    Lab(const Cache& cache, int n_batch)
        : s_(cache.s),
          limits_{n_batch, 0, s_.n_head, s_.n_head_kv, s_.head_dim, s_.n_ctx},
          dom_(cache.dom),
          rest_(cache.rest),
          step_(1),
          scratch_memory_(std::vector<uint8_t>(take(nullptr), 0xff)),
          view_(cache.view) {
        view_.dom = dom_.data();
        view_.rest = rest_.data();
        take(scratch_memory_.data());
    }

    // Rows pos0 .. of q [n][n_head][head_dim].
    std::vector<float> attend(const std::vector<float>& q, int32_t pos0, float scale, const PrefillTuning& tuning,
                              const std::vector<PrefillRange>& ranges = {PrefillRange{}}) {
        const auto n = static_cast<int32_t>(q.size()) / (s_.n_head * s_.head_dim);
        const DeviceArray<float> q_device(q), y(std::vector<float>(q.size(), NAN));
        step_.set({cuda::Step{seq, pos0}});
        for (const PrefillRange& range : ranges) {
            cuda::attend_prefill(y.data(), q_device.data(), s_.n_head, scale, view_, step_.data(), n, pos0 + n, range,
                                 scratch_, tuning, nullptr);
        }
        return y.host();
    }
    KvView& view() { return view_; }

   private:
    // Bytes of scratch, which lies in this memory.
    size_t take(uint8_t* memory) {
        Arena arena(memory);
        scratch_ = cuda::PrefillScratch::take(arena, limits_);
        return arena.used();
    }

    Shape s_;
    OpsLimits limits_;
    DeviceArray<uint16_t> dom_, rest_;
    DeviceArray<cuda::Step> step_;
    cuda::PrefillScratch scratch_;
    DeviceArray<uint8_t> scratch_memory_;
    KvView view_;
};

// Attention of one row and head in double precision.
std::vector<double> exact(const Cache& cache, const float* q, int head, int32_t n_pos, double scale) {
    const int head_dim = cache.s.head_dim, head_kv = head / (cache.s.n_head / cache.s.n_head_kv);
    std::vector<double> score, y(static_cast<size_t>(head_dim));
    for (int32_t pos = 0; pos < n_pos; ++pos) {
        double dot = 0;
        for (int d = 0; d < head_dim; ++d) dot += double{q[d]} * cache.key(head_kv, pos, d);
        score.push_back(dot * scale);
    }
    const double top = *std::max_element(score.begin(), score.end());
    double sum = 0;
    for (double& w : score) sum += w = std::exp(w - top);
    for (int32_t pos = 0; pos < n_pos; ++pos) {
        const double weight = score[static_cast<size_t>(pos)] / sum;
        for (int d = 0; d < head_dim; ++d) y[static_cast<size_t>(d)] += weight * cache.value(head_kv, pos, d);
    }
    return y;
}

// The largest error of the rows, every `stride`-th of them looked at.
double error_of(const Cache& cache, const std::vector<float>& y, const std::vector<float>& q, int32_t pos0, float scale,
                int stride = 1) {
    const auto n = static_cast<int32_t>(q.size()) / (cache.s.n_head * cache.s.head_dim);
    double worst = 0;
    for (int64_t i = 0; i < int64_t{n} * cache.s.n_head; i += stride) {
        const int64_t at = i * cache.s.head_dim;
        const auto pos = static_cast<int32_t>(i / cache.s.n_head);
        const auto truth =
            exact(cache, &q[static_cast<size_t>(at)], static_cast<int>(i % cache.s.n_head), pos0 + pos + 1, scale);
        for (int d = 0; d < cache.s.head_dim; ++d) {
            const double error = std::fabs(double{y[static_cast<size_t>(at + d)]} - truth[static_cast<size_t>(d)]);
            worst = std::isnan(error) ? INFINITY : std::max(worst, error);
        }
    }
    return worst;
}

std::vector<float> random_queries(const Shape& s, int n, uint32_t seed = 7) {
    return test::random_floats(int64_t{n} * s.n_head * s.head_dim, seed);
}

float scale_of(const Shape& s) { return 1.0f / std::sqrt(static_cast<float>(s.head_dim)); }

// Rounding q and the weights to half precision moves a score by some 2^-12 (scores are about 1) and a weight by as much
// of itself at most: errors of a few 2^-12 of the values, which reach 4. Measured: 5.4e-4 at most.
constexpr double tolerance = 1e-3;
// In single precision alone.
constexpr double plain_tolerance = 1e-5;

void check_error(const Shape& s, int n, int32_t pos0, const PrefillTuning& tuning, double limit = tolerance) {
    Cache cache(s);
    cache.forget_from(pos0 + n);
    const auto q = random_queries(s, n);
    const auto y = Lab(cache, n).attend(q, pos0, scale_of(s), tuning);
    CHECK_NEAR(error_of(cache, y, q, pos0, scale_of(s), n > 20 ? 7 : 1), 0.0, limit);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<float> rows_of(const std::vector<float>& q, const Shape& s, int first, int n) {
    const auto row = static_cast<int64_t>(s.n_head) * s.head_dim;
    return {q.begin() + first * row, q.begin() + (first + n) * row};
}

}  // namespace

TEST(prefill_attention_of_every_head_dim) {
    for (const PrefillTuning& tuning : {narrow, wide, unaligned}) {
        check_error({4, 1, 64, 0, 130}, 37, 71, tuning);
        check_error({7, 1, 64, 24, 140}, 19, 100, tuning);
        check_error({3, 3, 80, 0, 140}, 17, 110, tuning);
        check_error({2, 1, 80, 16, 140}, 70, 0, tuning);
        check_error({2, 1, 96, 32, 150}, 66, 70, tuning);
        check_error({8, 1, 128, 32, 150}, 18, 120, tuning);
        check_error({2, 2, 128, 0, 150}, 65, 64, tuning);
        check_error({2, 1, 256, 64, 150}, 40, 100, tuning);
    }
}

TEST(prefill_attention_of_groups_of_heads) {
    check_error({16, 1, 64, 16, 100}, 5, 90, narrow);
    check_error({14, 2, 64, 0, 100}, 3, 60, narrow);
    check_error({5, 5, 64, 8, 100}, 2, 0, narrow);
    check_error({1, 1, 64, 64, 100}, 1, 99, narrow);
    check_error({20, 1, 64, 0, 40}, 13, 20, narrow);
}

TEST(prefill_attention_where_rows_are_not_of_16_bytes) {
    check_error({4, 2, 8, 0, 80}, 11, 50, narrow);
    check_error({4, 2, 32, 10, 80}, 11, 64, narrow);
    check_error({2, 1, 2, 2, 80}, 7, 3, narrow);
    check_error({2, 2, 64, 6, 100}, 9, 80, wide);
    check_error({2, 1, 112, 28, 90}, 9, 80, wide);
    check_error({2, 1, 200, 0, 90}, 9, 70, narrow);
}

TEST(prefill_attention_of_large_heads) {
    check_error({2, 1, 258, 6, 60}, 5, 50, narrow, plain_tolerance);
    check_error({4, 2, 512, 64, 60}, 4, 33, narrow, plain_tolerance);
    check_error({1, 1, 1024, 0, 40}, 3, 30, wide, plain_tolerance);
}

TEST(prefill_attention_where_dims_do_not_come_in_pairs) {
    for (const PrefillTuning& tuning : {narrow, wide}) {
        check_error({4, 2, 21, 6, 80}, 11, 50, tuning, plain_tolerance);
        check_error({4, 2, 21, 7, 80}, 11, 50, tuning, plain_tolerance);
        check_error({2, 2, 64, 5, 60}, 7, 40, tuning, plain_tolerance);
        check_error({3, 1, 1, 0, 40}, 5, 20, tuning, plain_tolerance);
        check_error({1, 1, 255, 255, 40}, 5, 20, tuning, plain_tolerance);
        check_error({1, 1, 1023, 2, 40}, 3, 30, tuning, plain_tolerance);
    }
}

// Where a row stands in its batch, and where batches end, does not matter; neither whether its chunks of positions come
// one after the other, at once, or in several calls.
TEST(prefill_attention_gives_the_same_bits_in_any_batches) {
    const Shape shapes[] = {
        {6, 2, 64, 16, 300}, {3, 1, 128, 0, 300}, {2, 1, 320, 0, 200}, {2, 2, 20, 6, 300}, {2, 1, 21, 3, 200}};
    for (const Shape& s : shapes) {
        const Cache cache(s);
        const int n = 130;
        const int32_t pos0 = s.n_ctx - n;
        const auto q = random_queries(s, n);
        for (const PrefillTuning& tuning : {narrow, wide}) {
            Lab lab(cache, n);
            const auto together = lab.attend(q, pos0, scale_of(s), tuning);
            std::vector<float> apart;
            for (const int end : {1, 4, 17, 67, 130}) {
                const int first = static_cast<int>(apart.size()) / (s.n_head * s.head_dim);
                const auto y = lab.attend(rows_of(q, s, first, end - first), pos0 + first, scale_of(s), tuning);
                apart.insert(apart.end(), y.begin(), y.end());
            }
            CHECK(same_bits(together, apart));
        }
    }
}

TEST(prefill_attention_over_several_chunks) {
    const int32_t chunk = cuda::prefill_chunk, n_ctx = 2 * chunk + 100;
    const Shape shapes[] = {{2, 1, 64, 16, n_ctx}, {1, 1, 258, 0, n_ctx}, {1, 1, 7, 3, n_ctx}};
    for (const Shape& s : shapes) {
        const Cache cache(s);
        const int n = 12;
        const int32_t pos0 = 2 * chunk - 5;  // some rows do not see the last chunk
        const auto q = random_queries(s, n);
        Lab lab(cache, n);
        const auto y = lab.attend(q, pos0, scale_of(s), narrow);
        CHECK_NEAR(error_of(cache, y, q, pos0, scale_of(s), 5), 0.0, s.head_dim == 64 ? 1e-4 : plain_tolerance);
        CHECK(same_bits(y, lab.attend(q, pos0, scale_of(s), at_once)));

        const std::vector<PrefillRange> ranges = {
            {0, chunk, {}, false, false}, {chunk, 2 * chunk, {}, true, false}, {2 * chunk, INT32_MAX, {}, true, true}};
        CHECK(same_bits(y, lab.attend(q, pos0, scale_of(s), narrow, ranges)));
        CHECK(same_bits(y, lab.attend(q, pos0, scale_of(s), at_once,
                                      {{0, chunk, {}, false, false}, {chunk, INT32_MAX, {}, true, true}})));
        CHECK(same_bits(y, lab.attend(q, pos0, scale_of(s), at_once,
                                      {{0, 2 * chunk, {}, false, false}, {2 * chunk, INT32_MAX, {}, true, true}})));
    }
}

// Rows that lie elsewhere than in the cache; their dominant dims do not.
TEST(prefill_attention_over_a_tile_of_rows) {
    const int32_t chunk = cuda::prefill_chunk, n_ctx = chunk + 80, n_pos = 90;
    for (const Shape& s : {Shape{2, 2, 64, 8, n_ctx}, Shape{2, 2, 20, 6, n_ctx}, Shape{2, 1, 260, 0, n_ctx}}) {
        Cache cache(s);
        std::vector<uint16_t> rows(static_cast<size_t>(s.n_head_kv * n_pos * cache.view.row_values()), 0x7e00);
        for (int head = 0; head < s.n_head_kv; ++head) {
            std::copy_n(cache.view.rest_at(seq, head, chunk), 80 * cache.view.row_values(),
                        &rows[static_cast<size_t>(head * n_pos * cache.view.row_values())]);
        }
        const DeviceArray<uint16_t> tile(rows);
        const int n = 10;
        const auto q = random_queries(s, n);
        const auto attend = [&](const cuda::RowTile& from) {
            const PrefillRange range = {chunk, INT32_MAX, from, false, true};
            return Lab(cache, n).attend(q, n_ctx - n, scale_of(s), narrow, {range});
        };
        const auto y = attend({});
        std::fill(cache.rest.begin(), cache.rest.end(), uint16_t{0x7e00});
        CHECK(same_bits(y, attend({tile.data(), chunk, n_pos})));
        CHECK(std::none_of(y.begin(), y.end(), [](float v) { return std::isnan(v); }));
    }
}

// One score far above the others, and queries too large for a half.
TEST(prefill_attention_of_extreme_scores) {
    const Shape s = {2, 1, 64, 16, 200};
    Cache cache(s);
    const int n = 20;
    const int32_t pos0 = 150, peak = 100;
    auto q = random_queries(s, n);
    for (float& x : q) x = std::fabs(x) * 300.0f;
    q[0] = 1e30f;
    for (int d = 0; d < s.head_dim; ++d) {
        const uint16_t high = float_to_half(900.0f);
        (d < s.n_dom ? cache.view.dom_at(seq, 0, peak)[d] : cache.view.rest_at(seq, 0, peak)[d - s.n_dom]) = high;
    }
    for (const PrefillTuning& tuning : {narrow, wide, unaligned}) {
        const auto y = Lab(cache, n).attend(q, pos0, scale_of(s), tuning);
        double worst = 0;
        for (size_t i = 0; i < y.size(); ++i) {
            const double error = std::fabs(y[i] - cache.value(0, peak, static_cast<int>(i) % s.head_dim));
            worst = std::isnan(error) ? INFINITY : std::max(worst, error);
        }
        CHECK_NEAR(worst, 0.0, 4 * 0x1p-11);  // the one weight, rounded, against the sum, not rounded
    }
}

// What is not a number reaches the rows that see it, and no others.
TEST(prefill_attention_keeps_what_is_not_finite_to_its_rows) {
    const Shape shapes[] = {{2, 1, 64, 16, 200}, {2, 1, 96, 0, 200}, {1, 1, 320, 0, 200}};
    for (const Shape& s : shapes) {
        Cache cache(s);
        const int n = 70, row_nan_value = 20, row_nan_key = 40, row_nan_query = 10;
        const int32_t pos0 = 120;
        auto q = random_queries(s, n);
        const auto clean = Lab(cache, n).attend(q, pos0, scale_of(s), narrow);
        q[static_cast<size_t>(row_nan_query) * s.n_head * s.head_dim + 3] = NAN;
        cache.value_bits(0, pos0 + row_nan_value, 5) = 0x7e00;      // NaN
        cache.value_bits(0, pos0 + row_nan_value + 3, 7) = 0xfc00;  // -infinity
        cache.view.rest_at(seq, 0, pos0 + row_nan_key)[1] = 0x7e00;
        for (const PrefillTuning& tuning : {narrow, wide, unaligned}) {
            const auto y = Lab(cache, n).attend(q, pos0, scale_of(s), tuning);
            int n_wrong = 0;
            for (int i = 0; i < n; ++i) {
                for (int j = 0; j < s.n_head * s.head_dim; ++j) {
                    const size_t at = static_cast<size_t>(i) * s.n_head * s.head_dim + static_cast<size_t>(j);
                    const int d = j % s.head_dim;
                    const bool nan_query = i == row_nan_query && j < s.head_dim;
                    const bool nan = nan_query || (i >= row_nan_value && d == 5) || i >= row_nan_key;
                    const bool infinite = !nan && i >= row_nan_value + 3 && d == 7;
                    n_wrong += nan        ? !std::isnan(y[at])
                               : infinite ? y[at] != -INFINITY
                                          : !(std::fabs(y[at] - clean[at]) < 2 * tolerance);
                }
            }
            CHECK(n_wrong == 0);
        }
    }
}

TEST(prefill_attention_refuses_bad_shapes) {
    const Shape s = {2, 1, 64, 0, 16};
    const Cache cache(s);
    Lab lab(cache, 2);
    const auto q = random_queries(s, 2);
    CHECK_THROWS(lab.attend(q, 0, 0.0f, narrow), FASA_ERROR_ARGUMENT, "scale 0");
    CHECK_THROWS(lab.attend(q, 0, 1.0f, narrow, {{64, 128, 0, false, true}}), FASA_ERROR_ARGUMENT, "position 64");
    lab.view().head_dim = 1026;
    CHECK_THROWS(lab.attend(q, 0, 1.0f, narrow), FASA_ERROR_ARGUMENT, "head_dim 1026");
    lab.view().head_dim = 64;
    lab.view().n_head_kv = 4;
    CHECK_THROWS(lab.attend(q, 0, 1.0f, narrow), FASA_ERROR_ARGUMENT, "2 heads over 4");
}

TEST(prefill_attention_knows_its_device) { CHECK(PrefillTuning::of_device().n_blocks > 0); }
