// Rows of the plane of coded dominant keys (KeyCodes), as scoring takes them.
#pragma once

#include <cstdint>

#include "backend/cuda/dominant_rows.cuh"

namespace fasa::cuda {

// Code number i of a word, which becomes the low part of a float's mantissa: exact.
template <int bits>
__device__ __forceinline__ float code_value(uint32_t word, int i) {
    constexpr int n_part = 23 / bits;  // codes of a word that a mantissa has room for
    const int at = i % n_part * bits;
    const uint32_t mantissa = word >> (i / n_part * n_part * bits) & ((1u << bits) - 1) << at;
    const float offset = static_cast<float>((1 << (23 - at)) + (1 << (bits - 1)));
    return __uint_as_float(mantissa | (150u - at) << 23) - offset;
}

// Rows of codes, 8 bytes a lane: what decoding reads where dominant keys are coded. codes.n is a multiple of n_lane, at
// most n_lane * lanes; the codes are 8-byte aligned.
template <DomType type, int lanes_>
struct CodedRows {
    static constexpr int lanes = lanes_, bits = type == DomType::q4 ? 4 : 8, n_lane = 64 / bits;
    struct Loaded {
        uint2 words;
        uint16_t scale;
    };

    KeyCodes codes;
    int part;
    bool has_dims;
    float q[n_lane];

    __device__ CodedRows(const Keys& keys, int lane_part)
        : codes(keys.codes), part(lane_part), has_dims(n_lane * lane_part < keys.codes.n) {}

    __device__ void set_query(const SetQueries& queries, int head_dim, int set, float*) {
#pragma unroll
        for (int d = 0; d < n_lane; ++d) {
            q[d] = has_dims ? summed_query(queries, head_dim, set, n_lane * part + d) : 0.0f;
        }
    }
    __device__ Loaded load(int64_t pos) const {
        Loaded loaded = {};
        if (!has_dims) return loaded;
        loaded.words = ptx::load_once_8(codes.code + (pos * codes.n + n_lane * part) * bits / 8);
        loaded.scale = codes.scale[pos];
        return loaded;
    }
    __device__ float dot(const Loaded& keys) const {
        // Two's complement becomes an offset of 128, as nibbles have one of 8.
        constexpr uint32_t sign = type == DomType::int8 ? 0x80808080u : 0;
        const uint32_t low = keys.words.x ^ sign, high = keys.words.y ^ sign;
        constexpr int n_word = n_lane / 2;  // codes of a word
        float sum = 0;
#pragma unroll
        for (int i = 0; i < n_lane; ++i) {
            sum = fmaf(q[i], code_value<bits>(i < n_word ? low : high, i % n_word), sum);
        }
        return sum * __half2float(__ushort_as_half(keys.scale));
    }
};

// Rows of codes of any width: pairs of dims.
struct AnyCodes {
    static constexpr int lanes = 4;
    using Loaded = int64_t;

    KeyCodes codes;
    int part;
    const float* q;  // shared memory, [codes.n]

    __device__ AnyCodes(const Keys& keys, int lane_part) : codes(keys.codes), part(lane_part) {}

    __device__ void set_query(const SetQueries& queries, int head_dim, int set, float* shared) {
        for (int d = threadIdx.x; d < codes.n; d += blockDim.x) shared[d] = summed_query(queries, head_dim, set, d);
        q = shared;
        __syncthreads();
    }
    __device__ Loaded load(int64_t pos) const { return pos; }
    __device__ float dot(Loaded pos) const {
        const bool nibbles = codes.type == DomType::q4;
        const uint8_t* row = codes.code + pos * (nibbles ? codes.n / 2 : codes.n);
        float sum = 0;
        for (int d = 2 * part; d < codes.n; d += 2 * lanes) {
            const int a = nibbles ? (row[d / 2] & 15) - 8 : static_cast<int8_t>(row[d]);
            const int b = nibbles ? (row[d / 2] >> 4) - 8 : static_cast<int8_t>(row[d + 1]);
            sum = fmaf(q[d], static_cast<float>(a), sum);
            sum = fmaf(q[d + 1], static_cast<float>(b), sum);
        }
        return sum * __half2float(__ushort_as_half(codes.scale[pos]));
    }
};

}  // namespace fasa::cuda
