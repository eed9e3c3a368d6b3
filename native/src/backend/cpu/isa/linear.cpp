// The table of an instruction set's matrix products, and the activations as int8.
#include "backend/cpu/isa/linear.h"

#include "backend/cpu/isa/mat_tiles.h"
#include "backend/cpu/isa/quant_vec.h"

namespace fasa::cpu::FASA_ISA {

namespace {

inline __m256i abs_bits(__m256 x) { return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)); }

inline int reduce_max(__m256i v) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}

inline float as_float(int bits) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits))); }

// Stored as q + bias, bytes that wrap around.
void quantize_block(const float* x, __m256i bias, const Activations& a) {
    __m256 v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_ps(x + 8 * i);
    // As bits, NaN is above infinity and both are above any number.
    const int max_bits = reduce_max(_mm256_max_epi32(_mm256_max_epi32(abs_bits(v[0]), abs_bits(v[1])),
                                                     _mm256_max_epi32(abs_bits(v[2]), abs_bits(v[3]))));
    const float max = as_float(max_bits);
    if (max_bits >= 0x7f800000 || max < ACTIVATION_MIN) {
        const float d = max_bits >= 0x7f800000 ? __builtin_nanf("") : 0.0f;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(a.q), bias);
        a.d[0] = a.s32[0] = a.s16[0] = a.s16[1] = d;
        return;
    }
    const __m256 inverse = _mm256_set1_ps(127.0f / max);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    // Packing works within 128-bit halves and leaves runs of four out of order.
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i bytes = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(a.q), _mm256_add_epi8(bytes, bias));

    const __m256i fours = dot_unsigned(_mm256_set1_epi8(1), bytes);
    __m256i sums = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
    sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
    const int sum0 = _mm256_extract_epi32(sums, 0), sum1 = _mm256_extract_epi32(sums, 4);
    const float d = max / 127.0f;
    a.d[0] = d;
    a.s32[0] = d * static_cast<float>(sum0 + sum1);
    a.s16[0] = d * static_cast<float>(sum0);
    a.s16[1] = d * static_cast<float>(sum1);
}

void quantize(const float* x, int64_t n, int n_tokens, const Activations& a) {
    const __m256i bias = _mm256_set1_epi8(MAT_BIASED && n_tokens >= MAT_MIN ? -128 : 0);
    for (int64_t k = 0; k < n; k += 32) quantize_block(x + k, bias, from(a, k));
}

void rows(const LinearJob& job, int64_t begin, int64_t end, void* scratch) {
    if (is_float(job.out.w.dtype)) {
        job.n >= MAT_MIN_FLOAT ? mat_float(job, begin, end, scratch) : vec_float(job, begin, end);
    } else {
        job.n >= MAT_MIN ? mat_quantized(job, begin, end, scratch) : vec_quantized(job, begin, end);
    }
}

#define FASA_NAME_OF(isa) #isa
#define FASA_NAME(isa) FASA_NAME_OF(isa)

}  // namespace

const LinearKernels& linear_kernels() {
    static constexpr LinearKernels table = {FASA_NAME(FASA_ISA), MAT_TILE, quantize, rows, mat_scratch_bytes};
    return table;
}

}  // namespace fasa::cpu::FASA_ISA
