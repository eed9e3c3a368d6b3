// Each quantised block as integers with scales: the one place that spells out the bit layouts for scalar code.
// Source: the GGUF block formats as decoded by gguf-py's gguf.quants.
#pragma once

#include <cstdint>
#include <cstring>

#include "backend/cpu/quant.h"
#include "base/half.h"

namespace fasa::cpu {

// value[k] = scale[k / group] * q[k] - min[k / group]
template <int N, int GROUP>
struct Unpacked {
    static constexpr int size = N, group = GROUP;
    int8_t q[N];
    float scale[N / GROUP], min[N / GROUP];
};

inline Unpacked<QK, QK> unpack(const BlockQ4_0& b) {
    Unpacked<QK, QK> u;
    for (int i = 0; i < QK / 2; ++i) {
        u.q[i] = static_cast<int8_t>((b.qs[i] & 15) - 8);
        u.q[i + QK / 2] = static_cast<int8_t>((b.qs[i] >> 4) - 8);
    }
    u.scale[0] = half_to_float(b.d);
    u.min[0] = 0;
    return u;
}

inline Unpacked<QK, QK> unpack(const BlockQ4_1& b) {
    Unpacked<QK, QK> u;
    for (int i = 0; i < QK / 2; ++i) {
        u.q[i] = static_cast<int8_t>(b.qs[i] & 15);
        u.q[i + QK / 2] = static_cast<int8_t>(b.qs[i] >> 4);
    }
    u.scale[0] = half_to_float(b.d);
    u.min[0] = -half_to_float(b.m);
    return u;
}

// Bit i of qh is the fifth bit of value i.
inline int fifth_bit(const uint8_t* qh, int i) { return (qh[i / 8] >> (i % 8) & 1) << 4; }

inline Unpacked<QK, QK> unpack(const BlockQ5_0& b) {
    Unpacked<QK, QK> u;
    for (int i = 0; i < QK / 2; ++i) {
        u.q[i] = static_cast<int8_t>(((b.qs[i] & 15) | fifth_bit(b.qh, i)) - 16);
        u.q[i + QK / 2] = static_cast<int8_t>(((b.qs[i] >> 4) | fifth_bit(b.qh, i + QK / 2)) - 16);
    }
    u.scale[0] = half_to_float(b.d);
    u.min[0] = 0;
    return u;
}

inline Unpacked<QK, QK> unpack(const BlockQ5_1& b) {
    Unpacked<QK, QK> u;
    for (int i = 0; i < QK / 2; ++i) {
        u.q[i] = static_cast<int8_t>((b.qs[i] & 15) | fifth_bit(b.qh, i));
        u.q[i + QK / 2] = static_cast<int8_t>((b.qs[i] >> 4) | fifth_bit(b.qh, i + QK / 2));
    }
    u.scale[0] = half_to_float(b.d);
    u.min[0] = -half_to_float(b.m);
    return u;
}

inline Unpacked<QK, QK> unpack(const BlockQ8_0& b) {
    Unpacked<QK, QK> u;
    std::memcpy(u.q, b.qs, QK);
    u.scale[0] = half_to_float(b.d);
    u.min[0] = 0;
    return u;
}

// 32 bytes hold four runs of 32 values, two bits each.
inline Unpacked<QK_K, 16> unpack(const BlockQ2_K& b) {
    Unpacked<QK_K, 16> u;
    for (int k = 0; k < QK_K; ++k) u.q[k] = static_cast<int8_t>(b.qs[k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3);
    const float d = half_to_float(b.d), dmin = half_to_float(b.dmin);
    for (int g = 0; g < 16; ++g) {
        u.scale[g] = d * static_cast<float>(b.scales[g] & 15);
        u.min[g] = dmin * static_cast<float>(b.scales[g] >> 4);
    }
    return u;
}

// As Q2_K, with a third bit in hmask that subtracts 4 where it is clear; 6-bit scales less 32.
inline Unpacked<QK_K, 16> unpack(const BlockQ3_K& b) {
    Unpacked<QK_K, 16> u;
    for (int k = 0; k < QK_K; ++k) {
        const int low = b.qs[k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3;
        const int high = b.hmask[k % 32] >> (k / 32) & 1;
        u.q[k] = static_cast<int8_t>((low | high << 2) - 4);
    }
    const float d = half_to_float(b.d);
    for (int g = 0; g < 16; ++g) {
        const int low = b.scales[g % 8] >> (g / 8 * 4) & 15;
        const int high = b.scales[8 + g % 4] >> (g / 4 * 2) & 3;
        u.scale[g] = d * static_cast<float>((low | high << 4) - 32);
        u.min[g] = 0;
    }
    return u;
}

// Q4_K and Q5_K: eight 6-bit scales and mins in 12 bytes, the last four of each split over two places.
inline void unpack_scales(const uint8_t* scales, float d, float dmin, float* scale, float* min) {
    for (int g = 0; g < 4; ++g) {
        scale[g] = d * static_cast<float>(scales[g] & 63);
        min[g] = dmin * static_cast<float>(scales[g + 4] & 63);
        scale[g + 4] = d * static_cast<float>((scales[g + 8] & 15) | (scales[g] >> 6 << 4));
        min[g + 4] = dmin * static_cast<float>((scales[g + 8] >> 4) | (scales[g + 4] >> 6 << 4));
    }
}

inline Unpacked<QK_K, 32> unpack(const BlockQ4_K& b) {
    Unpacked<QK_K, 32> u;
    for (int k = 0; k < QK_K; ++k) u.q[k] = static_cast<int8_t>(b.qs[k / 64 * 32 + k % 32] >> (k % 64 / 32 * 4) & 15);
    unpack_scales(b.scales, half_to_float(b.d), half_to_float(b.dmin), u.scale, u.min);
    return u;
}

inline Unpacked<QK_K, 32> unpack(const BlockQ5_K& b) {
    Unpacked<QK_K, 32> u;
    for (int k = 0; k < QK_K; ++k) {
        const int low = b.qs[k / 64 * 32 + k % 32] >> (k % 64 / 32 * 4) & 15;
        const int high = b.qh[k % 32] >> (k / 32) & 1;
        u.q[k] = static_cast<int8_t>(low | high << 4);
    }
    unpack_scales(b.scales, half_to_float(b.d), half_to_float(b.dmin), u.scale, u.min);
    return u;
}

// Of each 128 values: ql holds runs 0 and 1 (of 32) in its low nibbles, 2 and 3 in its high ones; qh two bits of each.
inline Unpacked<QK_K, 16> unpack(const BlockQ6_K& b) {
    Unpacked<QK_K, 16> u;
    for (int k = 0; k < QK_K; ++k) {
        const int low = b.ql[k / 128 * 64 + k % 64] >> (k % 128 / 64 * 4) & 15;
        const int high = b.qh[k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3;
        u.q[k] = static_cast<int8_t>((low | high << 4) - 32);
    }
    const float d = half_to_float(b.d);
    for (int g = 0; g < 16; ++g) {
        u.scale[g] = d * static_cast<float>(b.scales[g]);
        u.min[g] = 0;
    }
    return u;
}

inline Unpacked<QK, QK> unpack(const BlockIQ4_NL& b) {
    Unpacked<QK, QK> u;
    for (int i = 0; i < QK / 2; ++i) {
        u.q[i] = IQ4_VALUES[b.qs[i] & 15];
        u.q[i + QK / 2] = IQ4_VALUES[b.qs[i] >> 4];
    }
    u.scale[0] = half_to_float(b.d);
    u.min[0] = 0;
    return u;
}

inline Unpacked<QK_K, 32> unpack(const BlockIQ4_XS& b) {
    Unpacked<QK_K, 32> u;
    for (int k = 0; k < QK_K; ++k) u.q[k] = IQ4_VALUES[b.qs[k / 32 * 16 + k % 16] >> (k % 32 / 16 * 4) & 15];
    const float d = half_to_float(b.d);
    for (int g = 0; g < 8; ++g) {
        const int low = b.scales_l[g / 2] >> (g % 2 * 4) & 15;
        const int high = b.scales_h >> (2 * g) & 3;
        u.scale[g] = d * static_cast<float>((low | high << 4) - 32);
        u.min[g] = 0;
    }
    return u;
}

}  // namespace fasa::cpu
