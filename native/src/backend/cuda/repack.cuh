// From the blocks of a GGUF file to the planes of weights.cuh: the same bits in another order.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace fasa::cuda {

template <class V>
__device__ inline void put(uint8_t* at, V value) {
    *reinterpret_cast<V*>(at) = value;
}

// The parts of a slice that weights.cuh describes; code(k) gives the bits of value k (0 to 31).
template <class Code>
__device__ inline void put_nibbles(uint8_t* at, const Code& code) {
    for (int i = 0; i < 16; ++i) put(at + i, static_cast<uint8_t>(code(i) | code(i + 16) << 4));
}
template <class Code>
__device__ inline void put_sequence(uint8_t* at, const Code& code) {
    for (int i = 0; i < 16; ++i) put(at + i, static_cast<uint8_t>(code(2 * i) | code(2 * i + 1) << 4));
}
template <class Code>
__device__ inline void put_pairs(uint8_t* at, const Code& code) {
    for (int i = 0; i < 8; ++i) {
        uint32_t v = 0;
        for (int w = 0; w < 4; ++w) v |= static_cast<uint32_t>(code(i / 4 * 16 + 4 * w + i % 4)) << (2 * w);
        put(at + i, static_cast<uint8_t>(v));
    }
}
template <class Code>
__device__ inline void put_bits(uint8_t* at, const Code& code) {
    for (int b = 0; b < 4; ++b) {
        uint32_t v = 0;
        for (int w = 0; w < 8; ++w) v |= static_cast<uint32_t>(code(4 * w + b)) << w;
        put(at + b, static_cast<uint8_t>(v));
    }
}

// Value k of the types that hold value i and i + 16 in one byte, and its fifth bit.
template <class Block>
__device__ inline int low_bits(const Block& b, int k) {
    return b.qs[k % 16] >> (k / 16 * 4) & 15;
}
template <class Block>
__device__ inline int fifth_bit(const Block& b, int k) {
    return b.qh[k / 8] >> (k % 8) & 1;
}

// Scale and min of slice j of Q4_K and Q5_K.
struct ScaleMin {
    int scale, min;
};
__device__ inline ScaleMin scale_min(const uint8_t* scales, int j) {
    if (j < 4) return {scales[j] & 63, scales[j + 4] & 63};
    return {(scales[j + 4] & 15) | scales[j - 4] >> 6 << 4, scales[j + 4] >> 4 | scales[j] >> 6 << 4};
}
template <class Block>
__device__ inline void put_header(uint8_t* at, const Block& b) {
    put(at, static_cast<uint32_t>(b.d | static_cast<uint32_t>(b.dmin) << 16));
    for (int j = 0; j < 8; ++j) {
        const ScaleMin v = scale_min(b.scales, j);
        put(at + 4 + j, static_cast<uint8_t>(v.scale | (v.min & 3) << 6));
    }
    for (int i = 0; i < 4; ++i) {
        const int first = scale_min(b.scales, 2 * i).min >> 2, second = scale_min(b.scales, 2 * i + 1).min >> 2;
        put(at + 12 + i, static_cast<uint8_t>(first | second << 4));
    }
}

// Block `b` of a row of n_slices slices, whose first slice is s.
__device__ inline void repack(const BlockQ4_0& b, uint8_t* row, int n_slices, int s) {
    put_nibbles(row + 16 * s, [&](int k) { return low_bits(b, k); });
    put(row + 16 * n_slices + 2 * s, b.d);
}
__device__ inline void repack(const BlockQ4_1& b, uint8_t* row, int n_slices, int s) {
    put_nibbles(row + 16 * s, [&](int k) { return low_bits(b, k); });
    put(row + 16 * n_slices + 4 * s, b.d);
    put(row + 16 * n_slices + 4 * s + 2, b.m);
}
__device__ inline void repack(const BlockQ5_0& b, uint8_t* row, int n_slices, int s) {
    put_nibbles(row + 16 * s, [&](int k) { return low_bits(b, k); });
    put_bits(row + 16 * n_slices + 4 * s, [&](int k) { return fifth_bit(b, k); });
    put(row + 20 * n_slices + 2 * s, b.d);
}
__device__ inline void repack(const BlockQ5_1& b, uint8_t* row, int n_slices, int s) {
    put_nibbles(row + 16 * s, [&](int k) { return low_bits(b, k); });
    put_bits(row + 16 * n_slices + 4 * s, [&](int k) { return fifth_bit(b, k); });
    put(row + 20 * n_slices + 4 * s, b.d);
    put(row + 20 * n_slices + 4 * s + 2, b.m);
}
__device__ inline void repack(const BlockQ8_0& b, uint8_t* row, int n_slices, int s) {
    for (int k = 0; k < 32; ++k) put(row + (k / 16) * 16 * n_slices + 16 * s + k % 16, b.qs[k]);
    put(row + 32 * n_slices + 2 * s, b.d);
}
__device__ inline void repack(const BlockIQ4_NL& b, uint8_t* row, int n_slices, int s) {
    put_sequence(row + 16 * s, [&](int k) { return low_bits(b, k); });
    put(row + 16 * n_slices + 2 * s, b.d);
}
__device__ inline void repack(const BlockQ2_K& b, uint8_t* row, int n_slices, int s) {
    for (int j = 0; j < 8; ++j) {
        put_pairs(row + 8 * (s + j), [&](int k) { return b.qs[j / 4 * 32 + k] >> (j % 4 * 2) & 3; });
        put(row + 8 * n_slices + 2 * (s + j), b.scales[2 * j]);
        put(row + 8 * n_slices + 2 * (s + j) + 1, b.scales[2 * j + 1]);
    }
    put(row + 10 * n_slices + s / 2, b.d);
    put(row + 10 * n_slices + s / 2 + 2, b.dmin);
}
__device__ inline void repack(const BlockQ3_K& b, uint8_t* row, int n_slices, int s) {
    const auto low = [&](int g) { return b.scales[g % 8] >> (g / 8 * 4) & 15; };
    const auto high = [&](int g) { return b.scales[8 + g % 4] >> (g / 4 * 2) & 3; };
    for (int j = 0; j < 8; ++j) {
        put_pairs(row + 8 * (s + j), [&](int k) { return b.qs[j / 4 * 32 + k] >> (j % 4 * 2) & 3; });
        put_bits(row + 8 * n_slices + 4 * (s + j), [&](int k) { return b.hmask[k] >> j & 1; });
        put(row + 12 * n_slices + s + j, static_cast<uint8_t>(low(2 * j) | low(2 * j + 1) << 4));
    }
    for (int i = 0; i < 4; ++i) {
        const int v = high(4 * i) | high(4 * i + 1) << 2 | high(4 * i + 2) << 4 | high(4 * i + 3) << 6;
        put(row + 13 * n_slices + s / 2 + i, static_cast<uint8_t>(v));
    }
    put(row + 27 * (n_slices / 2) + s / 4, b.d);
}
__device__ inline void repack(const BlockQ4_K& b, uint8_t* row, int n_slices, int s) {
    for (int j = 0; j < 8; ++j) {
        put_nibbles(row + 16 * (s + j), [&](int k) { return b.qs[j / 2 * 32 + k] >> (j % 2 * 4) & 15; });
    }
    put_header(row + 16 * n_slices + 2 * s, b);
}
__device__ inline void repack(const BlockQ5_K& b, uint8_t* row, int n_slices, int s) {
    for (int j = 0; j < 8; ++j) {
        put_nibbles(row + 16 * (s + j), [&](int k) { return b.qs[j / 2 * 32 + k] >> (j % 2 * 4) & 15; });
        put_bits(row + 16 * n_slices + 4 * (s + j), [&](int k) { return b.qh[k] >> j & 1; });
    }
    put_header(row + 20 * n_slices + 2 * s, b);
}
__device__ inline void repack(const BlockQ6_K& b, uint8_t* row, int n_slices, int s) {
    for (int j = 0; j < 8; ++j) {
        const uint8_t* low = b.ql + j / 4 * 64 + j % 2 * 32;
        const uint8_t* high = b.qh + j / 4 * 32;
        put_nibbles(row + 16 * (s + j), [&](int k) { return low[k] >> (j % 4 / 2 * 4) & 15; });
        put_pairs(row + 16 * n_slices + 8 * (s + j), [&](int k) { return high[k] >> (j % 4 * 2) & 3; });
        put(row + 24 * n_slices + 2 * (s + j), b.scales[2 * j]);
        put(row + 24 * n_slices + 2 * (s + j) + 1, b.scales[2 * j + 1]);
    }
    put(row + 26 * n_slices + s / 4, b.d);
}
__device__ inline void repack(const BlockIQ4_XS& b, uint8_t* row, int n_slices, int s) {
    for (int j = 0; j < 8; ++j) {
        put_sequence(row + 16 * (s + j), [&](int k) { return b.qs[16 * j + k % 16] >> (k / 16 * 4) & 15; });
    }
    uint8_t* header = row + 16 * n_slices + s;
    put(header, b.d);
    put(header + 2, b.scales_h);
    for (int i = 0; i < 4; ++i) put(header + 4 + i, b.scales_l[i]);
}

}  // namespace fasa::cuda
