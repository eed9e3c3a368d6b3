// The inner loops of ranking with vectors.
#include "backend/cpu/isa/simd.h"
#include "backend/cpu/rank_kernels.h"

namespace fasa::cpu::FASA_ISA {
namespace {

#if defined(__AVX512F__)
unsigned lanes_above(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
vf where_above(vf a, vf b, vf value) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), value); }
#else
unsigned lanes_above(vf a, vf b) { return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ))); }
vf where_above(vf a, vf b, vf value) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), value); }
#endif

template <bool with_base, bool with_second>
ScoreRange score_all(float* out, const float* base, const float* q, const float* first, const float* second, int n) {
    const vf q0 = set1(q[0]), q1 = with_second ? set1(q[1]) : zero();
    vf low = set1(__builtin_inff()), high = set1(-__builtin_inff()), sum = zero(), squares = zero();
    int j = 0;
    for (; j + LANES <= n; j += LANES) {
        vf score = with_base ? fma(q0, load(first + j), load(base + j)) : mul(q0, load(first + j));
        if constexpr (with_second) score = fma(q1, load(second + j), score);
        store(out + j, score);
        low = min(low, score);
        high = max(high, score);
        sum = add(sum, score);
        squares = fma(score, score, squares);
    }
    ScoreRange range{-reduce_max(sub(zero(), low)), reduce_max(high), reduce_add(sum), reduce_add(squares)};
    for (; j < n; ++j) {
        float score = (with_base ? base[j] : 0.0f) + q[0] * first[j];
        if constexpr (with_second) score += q[1] * second[j];
        out[j] = score;
        range.min = score < range.min ? score : range.min;
        range.max = score > range.max ? score : range.max;
        range.sum += score;
        range.sum_squares += score * score;
    }
    return range;
}

ScoreRange add_scores(float* out, const float* base, const float* q, const float* first, const float* second, int n) {
    if (base) return (second ? score_all<true, true> : score_all<true, false>)(out, base, q, first, second, n);
    return (second ? score_all<false, true> : score_all<false, false>)(out, base, q, first, second, n);
}

ScoreRange range(const float* scores, int n) {
    vf low = set1(__builtin_inff()), high = set1(-__builtin_inff()), sum = zero(), squares = zero();
    int j = 0;
    for (; j + LANES <= n; j += LANES) {
        const vf score = load(scores + j);
        low = min(low, score);
        high = max(high, score);
        sum = add(sum, score);
        squares = fma(score, score, squares);
    }
    ScoreRange all{-reduce_max(sub(zero(), low)), reduce_max(high), reduce_add(sum), reduce_add(squares)};
    for (; j < n; ++j) {
        all.min = scores[j] < all.min ? scores[j] : all.min;
        all.max = scores[j] > all.max ? scores[j] : all.max;
        all.sum += scores[j];
        all.sum_squares += scores[j] * scores[j];
    }
    return all;
}

int count_above(const float* scores, int n, float threshold) {
    const vf thresholds = set1(threshold);
    int count = 0, j = 0;
    for (; j + LANES <= n; j += LANES) count += __builtin_popcount(lanes_above(load(scores + j), thresholds));
    for (; j < n; ++j) count += scores[j] > threshold;
    return count;
}

float weight_above(const float* scores, const float* weights, int n, float threshold) {
    const vf thresholds = set1(threshold);
    vf sum = zero();
    int j = 0;
    for (; j + LANES <= n; j += LANES) {
        sum = add(sum, where_above(load(scores + j), thresholds, load(weights + j)));
    }
    float total = reduce_add(sum);
    for (; j < n; ++j) total += scores[j] > threshold ? weights[j] : 0.0f;
    return total;
}

int append_between(const float* scores, int n, float low, float high, Candidate* out) {
    const vf lows = set1(low), highs = set1(high);
    int count = 0, j = 0;
    for (; j + LANES <= n; j += LANES) {
        const vf score = load(scores + j);
        for (unsigned hit = lanes_above(score, lows) & ~lanes_above(score, highs); hit != 0; hit &= hit - 1) {
            const int lane = __builtin_ctz(hit);
            out[count++] = {scores[j + lane], j + lane};
        }
    }
    for (; j < n; ++j) {
        if (scores[j] > low && scores[j] <= high) out[count++] = {scores[j], j};
    }
    return count;
}

}  // namespace

extern const RankKernels rank;
const RankKernels rank = {add_scores, range, count_above, weight_above, append_between};

}  // namespace fasa::cpu::FASA_ISA
