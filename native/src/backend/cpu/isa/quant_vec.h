// Quantised blocks as vectors of 32 bytes and vectors of scales, for products along a row. A format is seen as
// value = scale * q + offset per group of 16 or 32 values, where q is a byte: unsigned and at most 127, or signed.
#pragma once

#include "backend/cpu/isa/vector_ints.h"
#include "backend/cpu/quant.h"

namespace fasa::cpu::FASA_ISA {

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i load_half_bytes(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline float half(uint16_t bits) { return _cvtsh_ss(bits); }

// Eight sums of four products each; u <= 127, so that no sum of two products leaves 16 bits.
inline __m256i dot_unsigned(__m256i u, __m256i a) {
#if defined(__AVX512VNNI__)
    return _mm256_dpbusd_epi32(_mm256_setzero_si256(), u, a);
#else
    return _mm256_madd_epi16(_mm256_maddubs_epi16(u, a), _mm256_set1_epi16(1));
#endif
}
// The same for signed q >= -128 and a >= -127, as |q| * (a with the sign of q).
inline __m256i dot_signed(__m256i q, __m256i a) { return dot_unsigned(_mm256_abs_epi8(q), _mm256_sign_epi8(a, q)); }

// 16 bytes as 32 nibbles: the low ones first.
inline __m256i nibbles(const uint8_t* p) {
    const __m256i twice = _mm256_broadcastsi128_si256(load_half_bytes(p));
    return _mm256_and_si256(_mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(15));
}
// Bits SHIFT and up of each byte, masked; a negative SHIFT moves to the left.
template <int SHIFT>
inline __m256i shifted(__m256i bytes, int mask) {
    const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
    if constexpr (SHIFT >= 0)
        return _mm256_and_si256(_mm256_srli_epi16(bytes, SHIFT), m);
    else
        return _mm256_and_si256(_mm256_slli_epi16(bytes, -SHIFT), m);
}
// 16 in every byte whose bit is set in 32 bits.
inline __m256i fifth_bits(const uint8_t* qh) {
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(load_u32(qh))),
                                               _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                                                2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
    const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), _mm256_set1_epi8(16));
}
inline __m256i iq4_values(__m256i index) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_half_bytes(IQ4_VALUES)), index);
}

// Eight small unsigned or signed bytes as floats.
inline __m256 floats_u8(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }
inline __m256 floats_s8(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }
inline __m256 times(float x, __m256 v) { return _mm256_mul_ps(_mm256_set1_ps(x), v); }

// Simple formats: `bytes` are the block's 32 values; the offset is -center * scale, or the block's own.
template <class Block>
struct Simple;

template <>
struct Simple<BlockQ4_0> {
    static constexpr bool is_signed = false, has_offset = true;
    static __m256i bytes(const BlockQ4_0& b) { return nibbles(b.qs); }
    static constexpr float center = 8;
};
template <>
struct Simple<BlockQ4_1> {
    static constexpr bool is_signed = false, has_offset = true;
    static __m256i bytes(const BlockQ4_1& b) { return nibbles(b.qs); }
};
template <>
struct Simple<BlockQ5_0> {
    static constexpr bool is_signed = false, has_offset = true;
    static __m256i bytes(const BlockQ5_0& b) { return _mm256_or_si256(nibbles(b.qs), fifth_bits(b.qh)); }
    static constexpr float center = 16;
};
template <>
struct Simple<BlockQ5_1> {
    static constexpr bool is_signed = false, has_offset = true;
    static __m256i bytes(const BlockQ5_1& b) { return _mm256_or_si256(nibbles(b.qs), fifth_bits(b.qh)); }
};
template <>
struct Simple<BlockQ8_0> {
    static constexpr bool is_signed = true, has_offset = false;
    static __m256i bytes(const BlockQ8_0& b) { return load_bytes(b.qs); }
};
template <>
struct Simple<BlockIQ4_NL> {
    static constexpr bool is_signed = true, has_offset = false;
    static __m256i bytes(const BlockIQ4_NL& b) { return iq4_values(nibbles(b.qs)); }
};

template <class Block>
inline float simple_offset(const Block& b) {
    if constexpr (requires { b.m; })
        return half(b.m);
    else
        return -Simple<Block>::center * half(b.d);
}

// Super-blocks: `bytes<I>` are values 32 I to 32 I + 31; `scales` gives scale and offset of each group, eight a vector.
template <class Block>
struct Super;

// Eight blocks of a simple format are a super-block too.
template <class Block>
struct Eight {
    Block blocks[8];
};

template <class Block>
struct Super<Eight<Block>> {
    static constexpr int group = 32;
    static constexpr bool is_signed = Simple<Block>::is_signed, has_offset = Simple<Block>::has_offset;
    static void scales(const Eight<Block>& b, __m256* scale, __m256* offset) {
        scale[0] = halves(b.blocks, [](const Block& block) { return block.d; });
        if constexpr (requires(Block x) { x.m; })
            offset[0] = halves(b.blocks, [](const Block& block) { return block.m; });
        else if constexpr (has_offset)
            offset[0] = times(-Simple<Block>::center, scale[0]);
    }
    template <int I>
    static __m256i bytes(const Eight<Block>& b) {
        return Simple<Block>::bytes(b.blocks[I]);
    }

   private:
    template <class Field>
    static __m256 halves(const Block* b, Field field) {
        const auto get = [&](int i) { return static_cast<short>(field(b[i])); };
        return _mm256_cvtph_ps(_mm_setr_epi16(get(0), get(1), get(2), get(3), get(4), get(5), get(6), get(7)));
    }
};

// The 6-bit scales and mins of Q4_K and Q5_K, from 12 bytes: the first four of each lie in the low bits of bytes 0-3
// and 4-7, the last four in the nibbles of bytes 8-11 with their top two bits above the first four.
template <class Block>
inline void scales_k45(const Block& b, __m256* scale, __m256* offset) {
    const __m128i packed = load_half_bytes(b.scales);
    const __m128i low = _mm_shuffle_epi8(packed, _mm_setr_epi8(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 8, 9, 10, 11));
    const __m128i high =
        _mm_shuffle_epi8(packed, _mm_setr_epi8(-1, -1, -1, -1, 0, 1, 2, 3, -1, -1, -1, -1, 4, 5, 6, 7));
    const __m128i s = _mm_or_si128(_mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)),
                                                 _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f)),
                                   _mm_and_si128(_mm_srli_epi16(high, 2), _mm_set1_epi8(0x30)));
    scale[0] = times(half(b.d), floats_u8(s));
    offset[0] = times(-half(b.dmin), floats_u8(_mm_srli_si128(s, 8)));
}

template <>
struct Super<BlockQ4_K> {
    static constexpr int group = 32;
    static constexpr bool is_signed = false, has_offset = true;
    static void scales(const BlockQ4_K& b, __m256* scale, __m256* offset) { scales_k45(b, scale, offset); }
    template <int I>
    static __m256i bytes(const BlockQ4_K& b) {
        return shifted<I % 2 * 4>(load_bytes(b.qs + I / 2 * 32), 15);
    }
};

template <>
struct Super<BlockQ5_K> {
    static constexpr int group = 32;
    static constexpr bool is_signed = false, has_offset = true;
    static void scales(const BlockQ5_K& b, __m256* scale, __m256* offset) { scales_k45(b, scale, offset); }
    template <int I>
    static __m256i bytes(const BlockQ5_K& b) {
        return _mm256_or_si256(shifted<I % 2 * 4>(load_bytes(b.qs + I / 2 * 32), 15),
                               shifted<I - 4>(load_bytes(b.qh), 16));
    }
};

template <>
struct Super<BlockQ6_K> {
    static constexpr int group = 16;
    static constexpr bool is_signed = false, has_offset = true;
    static void scales(const BlockQ6_K& b, __m256* scale, __m256* offset) {
        const __m128i s = load_half_bytes(b.scales);
        scale[0] = times(half(b.d), floats_s8(s));
        scale[1] = times(half(b.d), floats_s8(_mm_srli_si128(s, 8)));
        offset[0] = times(-32.0f, scale[0]);
        offset[1] = times(-32.0f, scale[1]);
    }
    template <int I>
    static __m256i bytes(const BlockQ6_K& b) {
        return _mm256_or_si256(shifted<I % 4 / 2 * 4>(load_bytes(b.ql + I / 4 * 64 + I % 2 * 32), 15),
                               shifted<I % 4 * 2 - 4>(load_bytes(b.qh + I / 4 * 32), 0x30));
    }
};

template <>
struct Super<BlockQ2_K> {
    static constexpr int group = 16;
    static constexpr bool is_signed = false, has_offset = true;
    static void scales(const BlockQ2_K& b, __m256* scale, __m256* offset) {
        const __m128i packed = load_half_bytes(b.scales), mask = _mm_set1_epi8(15);
        const __m128i s = _mm_and_si128(packed, mask), m = _mm_and_si128(_mm_srli_epi16(packed, 4), mask);
        scale[0] = times(half(b.d), floats_u8(s));
        scale[1] = times(half(b.d), floats_u8(_mm_srli_si128(s, 8)));
        offset[0] = times(-half(b.dmin), floats_u8(m));
        offset[1] = times(-half(b.dmin), floats_u8(_mm_srli_si128(m, 8)));
    }
    template <int I>
    static __m256i bytes(const BlockQ2_K& b) {
        return shifted<I % 4 * 2>(load_bytes(b.qs + I / 4 * 32), 3);
    }
};

template <>
struct Super<BlockQ3_K> {
    static constexpr int group = 16;
    static constexpr bool is_signed = false, has_offset = true;
    static void scales(const BlockQ3_K& b, __m256* scale, __m256* offset) {
        const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(b.scales));
        const __m128i low = _mm_unpacklo_epi64(first, _mm_srli_epi16(first, 4));
        const __m128i bits = _mm_set1_epi32(static_cast<int>(load_u32(b.scales + 8)));
        const __m128i high =
            _mm_srlv_epi32(_mm_sllv_epi32(bits, _mm_setr_epi32(4, 2, 0, 0)), _mm_setr_epi32(0, 0, 0, 2));
        const __m128i s =
            _mm_sub_epi8(_mm_or_si128(_mm_and_si128(low, _mm_set1_epi8(15)), _mm_and_si128(high, _mm_set1_epi8(0x30))),
                         _mm_set1_epi8(32));
        scale[0] = times(half(b.d), floats_s8(s));
        scale[1] = times(half(b.d), floats_s8(_mm_srli_si128(s, 8)));
        offset[0] = times(-4.0f, scale[0]);
        offset[1] = times(-4.0f, scale[1]);
    }
    template <int I>
    static __m256i bytes(const BlockQ3_K& b) {
        return _mm256_or_si256(shifted<I % 4 * 2>(load_bytes(b.qs + I / 4 * 32), 3),
                               shifted<I - 2>(load_bytes(b.hmask), 4));
    }
};

template <>
struct Super<BlockIQ4_XS> {
    static constexpr int group = 32;
    static constexpr bool is_signed = true, has_offset = false;
    static void scales(const BlockIQ4_XS& b, __m256* scale, __m256*) {
        const __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(load_u32(b.scales_l))),
                                              _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
        const __m256i high =
            _mm256_srlv_epi32(_mm256_set1_epi32(b.scales_h << 4), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
        const __m256i s = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)),
                                          _mm256_and_si256(high, _mm256_set1_epi32(0x30)));
        scale[0] = times(half(b.d), _mm256_cvtepi32_ps(_mm256_sub_epi32(s, _mm256_set1_epi32(32))));
    }
    template <int I>
    static __m256i bytes(const BlockIQ4_XS& b) {
        return iq4_values(nibbles(b.qs + I * 16));
    }
};

// A simple format's blocks are also worked on by eights.
template <class Block>
inline constexpr bool is_simple = requires(const Block& b) {
    Simple<Block>::bytes(b);
};
template <class Block, bool SIMPLE = is_simple<Block>>
struct SuperBlockOf {
    using Type = Block;
};
template <class Block>
struct SuperBlockOf<Block, true> {
    using Type = Eight<Block>;
};
template <class Block>
using SuperOf = typename SuperBlockOf<Block>::Type;

}  // namespace fasa::cpu::FASA_ISA
