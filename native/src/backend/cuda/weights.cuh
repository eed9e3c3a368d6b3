// Weight matrices in device memory, and how kernels read them.
//
// A row keeps the bytes of its GGUF blocks, sorted into planes so that every load is aligned and neighbouring threads
// read neighbouring bytes; rows are padded to 16 bytes (weights.h: device_row_bytes). Nothing is rounded: the planes
// hold the file's bits. With S = n_in / 32 slices of 32 values, planes in this order:
//
//   Q4_0           nibbles 16 S | d 2 S
//   Q4_1           nibbles 16 S | d, m 4 S
//   Q5_0           nibbles 16 S | bits 4 S | d 2 S
//   Q5_1           nibbles 16 S | bits 4 S | d, m 4 S
//   Q8_0           values 0 to 15 of every slice 16 S | values 16 to 31 16 S | d 2 S
//   IQ4_NL         sequence 16 S | d 2 S
//   Q2_K           pairs 8 S | scale, min 2 S | d, dmin S / 2
//   Q3_K           pairs 8 S | bits 4 S | low nibbles of two scales S | high bit pairs of two scales S / 2 | d S / 4
//   Q4_K           nibbles 16 S | header 2 S
//   Q5_K           nibbles 16 S | bits 4 S | header 2 S
//   Q6_K           nibbles 16 S | pairs 8 S | two scales 2 S | d S / 4
//   IQ4_XS         sequence 16 S | d, high bits, low bits of scales S
//   F32, F16, BF16 values in order, zeros behind
//
// Bits of a slice, value k being byte b = k % 4 of word w = k / 4 when widened to bytes:
//   nibbles   16 bytes: byte k % 16, low nibble for k < 16
//   sequence  16 bytes: nibble k, low nibbles first
//   pairs     8 bytes: bits 2 (w % 4) and up of byte 4 (w / 4) + b
//   bits      4 bytes: bit w of byte b
// Header of a super-block (8 slices), 16 bytes: d, dmin; then for slice j byte j: scale | (min & 3) << 6; then nibble
// j: min >> 2.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "backend/cuda/ptx.cuh"
#include "base/dtype.h"

namespace fasa::cuda {

template <class V>
__device__ inline V load(const uint8_t* at) {
    return __ldg(reinterpret_cast<const V*>(at));
}

template <class V, class Bits>
__device__ inline V as(Bits bits) {
    static_assert(sizeof(V) == sizeof(Bits));
    V v;
    memcpy(&v, &bits, sizeof(v));
    return v;
}
__device__ inline float half_bits(uint16_t bits) { return __half2float(as<__half>(bits)); }
__device__ inline float2 half_pair(uint32_t bits) { return __half22float2(as<__half2>(bits)); }
__device__ inline float bfloat_bits(uint32_t bits) { return __uint_as_float(bits << 16); }

__device__ inline uint32_t word_of(const uint4& v, int w) { return w == 0 ? v.x : w == 1 ? v.y : w == 2 ? v.z : v.w; }
__device__ inline uint32_t word_of(const uint2& v, int w) { return w == 0 ? v.x : v.y; }

// Word w (0 to 7) of a slice, each value a byte; of the bits kept in `pairs` and `bits`, moved up to bit 4 (or bit 2).
__device__ inline uint32_t nibble_word(const uint4& q, int w) { return word_of(q, w % 4) >> (w / 4 * 4) & 0x0f0f0f0fu; }
__device__ inline uint32_t pair_word(const uint2& q, int w) { return word_of(q, w / 4) >> (w % 4 * 2) & 0x03030303u; }
__device__ inline uint32_t shifted(uint32_t v, int left) { return left >= 0 ? v << left : v >> -left; }
__device__ inline uint32_t pair_word_at_4(const uint2& q, int w) {
    return shifted(word_of(q, w / 4), 4 - w % 4 * 2) & 0x30303030u;
}
__device__ inline uint32_t bit_word_at_4(uint32_t q, int w) { return shifted(q, 4 - w) & 0x10101010u; }
__device__ inline uint32_t bit_word_at_2(uint32_t q, int w) { return shifted(q, 2 - w) & 0x04040404u; }

// The IQ4 values of four nibbles in the low half of `index`: each half of the table by three bits, then the fourth bit.
__device__ inline uint32_t iq4_word(uint32_t index) {
    const uint32_t low = __byte_perm(0xbfad9881u, 0xf6eaddcfu, index & 0x7777u);   // -127 -104 -83 -65, -49 -35 -22 -10
    const uint32_t high = __byte_perm(0x26190d01u, 0x71594535u, index & 0x7777u);  // 1 13 25 38, 53 69 89 113
    return __byte_perm(low, high, 0x3210u | (index & 0x8888u) >> 1);
}
__device__ inline uint32_t iq4_word(const uint4& q, int w) {
    return iq4_word(word_of(q, w / 2) >> (w % 2 * 16) & 0xffffu);
}

// Of the groups of a slice: value = scale * (q - zero) - min.
template <int N_GROUPS>
struct Scales {
    float scale[N_GROUPS], min[N_GROUPS];
};

// 32 values of a row in registers, as loaded. For every quantised type:
//   n_groups  1 or 2: groups of 32 or 16 values with a scale each
//   zero      what is taken off every q
//   has_min   whether min can differ from 0
//   load      slice s of a row of n_slices
//   word      values 4 w to 4 w + 3 as bytes: q
//   scales    of slice s
template <DType T>
struct Slice;

template <int ZERO>
struct SimpleSlice {
    static constexpr int n_groups = 1, zero = ZERO;
    static constexpr bool has_min = false;
};
template <int N_GROUPS>
struct MinSlice {
    static constexpr int n_groups = N_GROUPS, zero = 0;
    static constexpr bool has_min = true;
};

template <>
struct Slice<FASA_DTYPE_Q4_0> : SimpleSlice<8> {
    uint4 q;
    uint16_t d;

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        q = ptx::load_once(row + 16 * s);
        d = cuda::load<uint16_t>(row + 16 * n_slices + 2 * s);
    }
    __device__ uint32_t word(int w) const { return nibble_word(q, w); }
    __device__ Scales<1> scales(int) const { return {{half_bits(d)}, {0}}; }
};

template <>
struct Slice<FASA_DTYPE_Q4_1> : MinSlice<1> {
    uint4 q;
    uint32_t dm;

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        q = ptx::load_once(row + 16 * s);
        dm = cuda::load<uint32_t>(row + 16 * n_slices + 4 * s);
    }
    __device__ uint32_t word(int w) const { return nibble_word(q, w); }
    __device__ Scales<1> scales(int) const {
        const float2 v = half_pair(dm);
        return {{v.x}, {-v.y}};
    }
};

template <>
struct Slice<FASA_DTYPE_Q5_0> : SimpleSlice<16> {
    uint4 q;
    uint32_t bits;
    uint16_t d;

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        q = ptx::load_once(row + 16 * s);
        bits = cuda::load<uint32_t>(row + 16 * n_slices + 4 * s);
        d = cuda::load<uint16_t>(row + 20 * n_slices + 2 * s);
    }
    __device__ uint32_t word(int w) const { return nibble_word(q, w) | bit_word_at_4(bits, w); }
    __device__ Scales<1> scales(int) const { return {{half_bits(d)}, {0}}; }
};

template <>
struct Slice<FASA_DTYPE_Q5_1> : MinSlice<1> {
    uint4 q;
    uint32_t bits, dm;

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        q = ptx::load_once(row + 16 * s);
        bits = cuda::load<uint32_t>(row + 16 * n_slices + 4 * s);
        dm = cuda::load<uint32_t>(row + 20 * n_slices + 4 * s);
    }
    __device__ uint32_t word(int w) const { return nibble_word(q, w) | bit_word_at_4(bits, w); }
    __device__ Scales<1> scales(int) const {
        const float2 v = half_pair(dm);
        return {{v.x}, {-v.y}};
    }
};

template <>
struct Slice<FASA_DTYPE_Q8_0> : SimpleSlice<0> {
    uint4 low, high;
    uint16_t d;

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        low = ptx::load_once(row + 16 * s);
        high = ptx::load_once(row + 16 * n_slices + 16 * s);
        d = cuda::load<uint16_t>(row + 32 * n_slices + 2 * s);
    }
    __device__ uint32_t word(int w) const { return w < 4 ? word_of(low, w) : word_of(high, w - 4); }
    __device__ Scales<1> scales(int) const { return {{half_bits(d)}, {0}}; }
};

template <>
struct Slice<FASA_DTYPE_IQ4_NL> : SimpleSlice<0> {
    uint4 q;
    uint16_t d;

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        q = ptx::load_once(row + 16 * s);
        d = cuda::load<uint16_t>(row + 16 * n_slices + 2 * s);
    }
    __device__ uint32_t word(int w) const { return iq4_word(q, w); }
    __device__ Scales<1> scales(int) const { return {{half_bits(d)}, {0}}; }
};

template <>
struct Slice<FASA_DTYPE_Q2_K> : MinSlice<2> {
    uint2 q;
    uint32_t dm;
    uint16_t sm;

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        q = cuda::load<uint2>(row + 8 * s);
        sm = cuda::load<uint16_t>(row + 8 * n_slices + 2 * s);
        dm = cuda::load<uint32_t>(row + 10 * n_slices + 4 * (s / 8));
    }
    __device__ uint32_t word(int w) const { return pair_word(q, w); }
    __device__ Scales<2> scales(int) const {
        const float2 v = half_pair(dm);
        return {{v.x * static_cast<float>(sm & 15), v.x * static_cast<float>(sm >> 8 & 15)},
                {v.y * static_cast<float>(sm >> 4 & 15), v.y * static_cast<float>(sm >> 12)}};
    }
};

template <>
struct Slice<FASA_DTYPE_Q3_K> {
    static constexpr int n_groups = 2, zero = 4;
    static constexpr bool has_min = false;
    uint2 q;
    uint32_t bits;
    uint16_t d;
    uint8_t low, high;

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        q = cuda::load<uint2>(row + 8 * s);
        bits = cuda::load<uint32_t>(row + 8 * n_slices + 4 * s);
        low = cuda::load<uint8_t>(row + 12 * n_slices + s);
        high = cuda::load<uint8_t>(row + 13 * n_slices + s / 2);
        d = cuda::load<uint16_t>(row + 27 * (n_slices / 2) + 2 * (s / 8));
    }
    __device__ uint32_t word(int w) const { return pair_word(q, w) | bit_word_at_2(bits, w); }
    __device__ Scales<2> scales(int s) const {
        const int top = high >> (s % 2 * 4);
        const int first = (low & 15) | (top & 3) << 4, second = low >> 4 | (top & 12) << 2;
        const float v = half_bits(d);
        return {{v * static_cast<float>(first - 32), v * static_cast<float>(second - 32)}, {0, 0}};
    }
};

// i < 2^23 as a float: or'ed into 2^23's bits, which takes less time than a conversion.
__device__ inline float small_float(uint32_t i) { return __uint_as_float(0x4b000000u | i) - 0x1p23f; }

// Scale and min of slice s from the header of its super-block.
__device__ inline Scales<1> header_scales(const uint4& header, int s) {
    const int j = s % 8;
    const uint32_t byte = __byte_perm(header.y, header.z, static_cast<uint32_t>(j));
    const uint32_t min = (byte >> 6 & 3) | (header.w >> (4 * j) & 15) << 2;
    const float2 v = half_pair(header.x);
    return {{v.x * small_float(byte & 63)}, {v.y * small_float(min)}};
}

template <>
struct Slice<FASA_DTYPE_Q4_K> : MinSlice<1> {
    uint4 q, header;

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        q = ptx::load_once(row + 16 * s);
        header = cuda::load<uint4>(row + 16 * n_slices + 16 * (s / 8));
    }
    __device__ uint32_t word(int w) const { return nibble_word(q, w); }
    __device__ Scales<1> scales(int s) const { return header_scales(header, s); }
};

template <>
struct Slice<FASA_DTYPE_Q5_K> : MinSlice<1> {
    uint4 q, header;
    uint32_t bits;

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        q = ptx::load_once(row + 16 * s);
        bits = cuda::load<uint32_t>(row + 16 * n_slices + 4 * s);
        header = cuda::load<uint4>(row + 20 * n_slices + 16 * (s / 8));
    }
    __device__ uint32_t word(int w) const { return nibble_word(q, w) | bit_word_at_4(bits, w); }
    __device__ Scales<1> scales(int s) const { return header_scales(header, s); }
};

template <>
struct Slice<FASA_DTYPE_Q6_K> {
    static constexpr int n_groups = 2, zero = 32;
    static constexpr bool has_min = false;
    uint4 q;
    uint2 pairs;
    uint16_t sc, d;

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        q = ptx::load_once(row + 16 * s);
        pairs = cuda::load<uint2>(row + 16 * n_slices + 8 * s);
        sc = cuda::load<uint16_t>(row + 24 * n_slices + 2 * s);
        d = cuda::load<uint16_t>(row + 26 * n_slices + 2 * (s / 8));
    }
    __device__ uint32_t word(int w) const { return nibble_word(q, w) | pair_word_at_4(pairs, w); }
    __device__ Scales<2> scales(int) const {
        const float v = half_bits(d);
        return {{v * static_cast<float>(static_cast<int8_t>(sc & 255)),
                 v * static_cast<float>(static_cast<int8_t>(sc >> 8))},
                {0, 0}};
    }
};

template <>
struct Slice<FASA_DTYPE_IQ4_XS> : SimpleSlice<0> {
    uint4 q;
    uint2 header;  // d, high bits; low bits

    __device__ void load(const uint8_t* row, int n_slices, int s) {
        q = ptx::load_once(row + 16 * s);
        header = cuda::load<uint2>(row + 16 * n_slices + 8 * (s / 8));
    }
    __device__ uint32_t word(int w) const { return iq4_word(q, w); }
    __device__ Scales<1> scales(int s) const {
        const int j = s % 8;
        const uint32_t scale = (header.y >> (4 * j) & 15) | (header.x >> (16 + 2 * j) & 3) << 4;
        const float d = half_bits(static_cast<uint16_t>(header.x & 0xffffu));
        return {{d * static_cast<float>(static_cast<int>(scale) - 32)}, {0}};
    }
};

template <DType T>
inline constexpr bool is_float_type = T == FASA_DTYPE_F32 || T == FASA_DTYPE_F16 || T == FASA_DTYPE_BF16;

// Float types: 16 bytes hold this many values.
template <DType T>
inline constexpr int piece_values = T == FASA_DTYPE_F32 ? 4 : 8;

// The values of 16 bytes of a row of a float type.
template <DType T>
__device__ inline void piece_to_float(const uint4& piece, float* y) {
    for (int i = 0; i < 4; ++i) {
        const uint32_t bits = word_of(piece, i);
        if constexpr (T == FASA_DTYPE_F32) {
            y[i] = __uint_as_float(bits);
        } else if constexpr (T == FASA_DTYPE_F16) {
            const float2 v = half_pair(bits);
            y[2 * i] = v.x;
            y[2 * i + 1] = v.y;
        } else {
            y[2 * i] = bfloat_bits(bits & 0xffffu);
            y[2 * i + 1] = __uint_as_float(bits & 0xffff0000u);
        }
    }
}

// Values k to k + N - 1 of a row of n_in values as float; N 8, 16 or 32, k a multiple of N. The whole row is a multiple
// of 32 values unless the type is a float one, where values past the end of the row are zeros. For N < 32 a quantised
// type loads the whole slice all the same: 32 is the fastest.
template <DType T, int N>
__device__ inline void dequantize(const uint8_t* row, int64_t n_in, int64_t k, float (&y)[N]) {
    static_assert(N == 8 || N == 16 || N == 32);
    if constexpr (is_float_type<T>) {
        constexpr int n_values = piece_values<T>;
#pragma unroll
        for (int i = 0; i < N; i += n_values) {
            const bool inside = k + i < n_in;
            const uint4 piece = inside ? load<uint4>(row + (k + i) * (16 / n_values)) : uint4{0, 0, 0, 0};
            piece_to_float<T>(piece, y + i);
        }
    } else {
        const int s = static_cast<int>(k / 32), part = static_cast<int>(k % 32) / N;
        Slice<T> slice;
        slice.load(row, static_cast<int>(n_in / 32), s);
        const auto scales = slice.scales(s);
#pragma unroll
        for (int w = 0; w < 8; ++w) {
            if (w * 4 / N != part) continue;
            const uint32_t q = slice.word(w);
            const int group = Slice<T>::n_groups == 2 ? w / 4 : 0;
#pragma unroll
            for (int b = 0; b < 4; ++b) {
                const int value = static_cast<int8_t>(q >> (8 * b) & 255) - Slice<T>::zero;
                float& out = y[w * 4 % N + b];
                out = scales.scale[group] * static_cast<float>(value);
                if constexpr (Slice<T>::has_min) out -= scales.min[group];
            }
        }
    }
}

// The same, rounded to half precision; F16 weights come out as they are.
template <DType T, int N>
__device__ inline void dequantize(const uint8_t* row, int64_t n_in, int64_t k, __half2 (&y)[N / 2]) {
    float v[N];
    dequantize<T, N>(row, n_in, k, v);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) y[i] = __float22half2_rn(make_float2(v[2 * i], v[2 * i + 1]));
}

// All supported types, for a switch over them.
#define FASA_EACH_DTYPE(F) \
    F(F32)                 \
    F(F16) F(BF16) F(Q4_0) F(Q4_1) F(Q5_0) F(Q5_1) F(Q8_0) F(Q2_K) F(Q3_K) F(Q4_K) F(Q5_K) F(Q6_K) F(IQ4_NL) F(IQ4_XS)
#define FASA_DTYPE_CASE(name) \
    case FASA_DTYPE_##name:   \
        return body.template operator()<FASA_DTYPE_##name>(), true;

// Calls body.template operator()<T>() for the type; false for one that is not supported. On the host.
template <class Body>
inline bool with_type(DType type, const Body& body) {
    switch (type) {
        FASA_EACH_DTYPE(FASA_DTYPE_CASE)
        default:
            return false;
    }
}

// The same in a kernel.
template <class Body>
__device__ inline bool with_type_on_device(DType type, const Body& body) {
    switch (type) {
        FASA_EACH_DTYPE(FASA_DTYPE_CASE)
        default:
            return false;
    }
}

}  // namespace fasa::cuda
