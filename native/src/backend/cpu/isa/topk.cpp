// The filter in front of the top-k: almost every vector of scores is dismissed by one comparison.
#include "backend/cpu/topk.h"
#include "backend/cpu/isa/simd.h"

namespace fasa::cpu::FASA_ISA {
namespace {

unsigned lanes_above(const float* scores, vf threshold) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(load(scores), threshold, _CMP_GT_OQ);
#else
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(load(scores), threshold, _CMP_GT_OQ)));
#endif
}

int filter(const float* scores, int n, float threshold, int32_t first, Candidate* out) {
    const vf thresholds = set1(threshold);
    int count = 0, j = 0;
    for (; j + LANES <= n; j += LANES) {
        for (unsigned above = lanes_above(scores + j, thresholds); above != 0; above &= above - 1) {
            const int lane = __builtin_ctz(above);
            out[count++] = {scores[j + lane], first + j + lane};
        }
    }
    for (; j < n; ++j) {
        if (scores[j] > threshold) out[count++] = {scores[j], first + j};
    }
    return count;
}

}  // namespace

extern const AppendAbove append_above;
const AppendAbove append_above = filter;

}  // namespace fasa::cpu::FASA_ISA
