// Vectors of LANES 32-bit integers, beside simd.h's floats. Loads and stores are of aligned addresses.
#pragma once

#include "backend/cpu/isa/simd.h"

namespace fasa::cpu::FASA_ISA {

inline uint32_t load_u32(const void* p) {
    uint32_t x;
    __builtin_memcpy(&x, p, sizeof(x));
    return x;
}

#if defined(__AVX512F__)
inline vi load_ints(const void* p) { return _mm512_load_si512(p); }
inline void store_ints(void* p, vi x) { _mm512_store_si512(p, x); }
inline vf as_floats(vi bits) { return _mm512_castsi512_ps(bits); }
inline vi gather(const uint8_t* p, vi offsets) { return _mm512_i32gather_epi32(offsets, p, 1); }
inline vi splat(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
inline vi bit_and(vi a, vi b) { return _mm512_and_si512(a, b); }
inline vi bit_or(vi a, vi b) { return _mm512_or_si512(a, b); }
inline vi shift_right(vi a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }
inline vi shift_left(vi a, int n) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(n)); }
inline vi sub_bytes(vi a, vi b) { return _mm512_sub_epi8(a, b); }
inline vi sub_ints(vi a, vi b) { return _mm512_sub_epi32(a, b); }
inline vi mul_ints(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
inline vf to_floats(vi a) { return _mm512_cvtepi32_ps(a); }
inline vi shuffle_table(__m128i table, vi index) { return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), index); }
inline vf half_floats(vi low) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(low)); }  // of the low 16 bits
#else
inline vi load_ints(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
inline void store_ints(void* p, vi x) { _mm256_store_si256(static_cast<__m256i*>(p), x); }
inline vf as_floats(vi bits) { return _mm256_castsi256_ps(bits); }
inline vi gather(const uint8_t* p, vi offsets) {
    return _mm256_i32gather_epi32(reinterpret_cast<const int*>(p), offsets, 1);
}
inline vi splat(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
inline vi bit_and(vi a, vi b) { return _mm256_and_si256(a, b); }
inline vi bit_or(vi a, vi b) { return _mm256_or_si256(a, b); }
inline vi shift_right(vi a, int n) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(n)); }
inline vi shift_left(vi a, int n) { return _mm256_sll_epi32(a, _mm_cvtsi32_si128(n)); }
inline vi sub_bytes(vi a, vi b) { return _mm256_sub_epi8(a, b); }
inline vi sub_ints(vi a, vi b) { return _mm256_sub_epi32(a, b); }
inline vi mul_ints(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
inline vf to_floats(vi a) { return _mm256_cvtepi32_ps(a); }
inline vi shuffle_table(__m128i table, vi index) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), index);
}
inline vf half_floats(vi low) {
    const __m256i packed =
        _mm256_packus_epi32(_mm256_and_si256(low, _mm256_set1_epi32(0xffff)), _mm256_setzero_si256());
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
#endif

}  // namespace fasa::cpu::FASA_ISA
