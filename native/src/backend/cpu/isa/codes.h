// Vectors of key codes (KeyCodes in views.h) as floats, their scale left out.
#pragma once

#include "backend/cpu/isa/simd.h"
#include "backend/views.h"

namespace fasa::cpu::FASA_ISA {

// LANES codes of one byte each.
inline vf load_bytes(__m128i bytes) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#else
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#endif
}

// The first n_bytes of p, zeros after them.
template <int n_bytes>
__m128i load_low(const uint8_t* p) {
    __m128i bytes = _mm_setzero_si128();
    __builtin_memcpy(&bytes, p, n_bytes);
    return bytes;
}

template <DomType type>
vf load_codes(const uint8_t* p) {
    if constexpr (type == DomType::q4) {
        const __m128i pairs = load_low<LANES / 2>(p), nibble = _mm_set1_epi8(15);
        const __m128i low = _mm_and_si128(pairs, nibble), high = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
        return load_bytes(_mm_sub_epi8(_mm_unpacklo_epi8(low, high), _mm_set1_epi8(8)));
    } else {
        return load_bytes(load_low<LANES>(p));
    }
}

// The first n codes, n even; further lanes are zero, and the other addresses are not touched.
template <DomType type>
vf load_codes_any(const uint8_t* p, int n) {
    if (n >= LANES) return load_codes<type>(p);
    uint8_t buffer[LANES];
    for (int i = 0; i < LANES; ++i) buffer[i] = i < code_bytes(type, n) ? p[i] : type == DomType::q4 ? 0x88 : 0;
    return load_codes<type>(buffer);
}

}  // namespace fasa::cpu::FASA_ISA
