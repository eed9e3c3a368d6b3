// What a thread multiplies in the matrix products of decoding: a part of a weight row, and the same part of every row
// of the activations, which stays in registers while weight rows pass by. A part is a slice of 32 values of a quantised
// type, 16 bytes of a float type.
#pragma once

#include <cstdint>

#include "backend/cuda/quantize.cuh"
#include "backend/cuda/weights.cuh"

namespace fasa::cuda {

// The activations as a block sees them: x for float weights, its int8 form for quantised ones.
struct Activations {
    const float* x;     // [n][n_in]
    const float* norm;  // [n_in]: x counts as x * scale * norm; or nullptr
    float scale;
    Quantized quantized;
    int n_in, n;
};

// 16 bytes of a row of a float type.
template <DType T>
struct Piece {
    uint4 bits;

    __device__ void load(const uint8_t* row, int, int part) { bits = ptx::load_once(row + 16 * part); }
};

template <DType T>
struct PartOf {
    using type = Slice<T>;
    static constexpr int n_values = 32;
};
template <DType T>
requires is_float_type<T>
struct PartOf<T> {
    using type = Piece<T>;
    static constexpr int n_values = piece_values<T>;
};
template <DType T>
using Part = typename PartOf<T>::type;
template <DType T>
inline constexpr int part_values = PartOf<T>::n_values;

// One part of N rows of activations.
template <DType T, int N>
struct ActivationPart {
    using S = Slice<T>;
    // A float of these bits plus i, for |i| < 2^22, is 1.5 * 2^23 + i: an integer sum that starts with them needs no
    // conversion, which would take longer than a subtraction.
    static constexpr int magic_bits = 0x4b400000;
    static constexpr float magic = 0x1.8p23f;
    int q[N][8];
    float d[N];
    int start[N][S::n_groups];  // of the integer sums: magic - zero * sum of q
    float sum[N][S::n_groups];  // d * sum of q

    // Rows `first` and up; those from a.n on, and all when not inside, are zeros.
    __device__ void load(const Activations& a, int first, int part, bool inside) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            uint4 low = {0, 0, 0, 0}, high = low;
            d[j] = 0;
            if (inside && first + j < a.n) {
                const auto* at =
                    reinterpret_cast<const uint4*>(a.quantized.q + int64_t{first + j} * a.n_in + 32 * part);
                low = at[0];
                high = at[1];
                d[j] = a.quantized.d[int64_t{first + j} * (a.n_in / 32) + part];
            }
#pragma unroll
            for (int w = 0; w < 8; ++w) q[j][w] = static_cast<int>(w < 4 ? word_of(low, w) : word_of(high, w - 4));
#pragma unroll
            for (int g = 0; g < S::n_groups; ++g) {
                int total = 0;
#pragma unroll
                for (int w = g * 8 / S::n_groups; w < (g + 1) * 8 / S::n_groups; ++w) {
                    total = __dp4a(q[j][w], 0x01010101, total);
                }
                start[j][g] = magic_bits - S::zero * total;
                sum[j][g] = d[j] * static_cast<float>(total);
            }
        }
    }

    // y[j] = weights . activations of row j
    __device__ void dot(const S& weights, int part, float* y) const {
        int w[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) w[i] = static_cast<int>(weights.word(i));
        const auto scales = weights.scales(part);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            float product = 0, offset = 0;
#pragma unroll
            for (int g = 0; g < S::n_groups; ++g) {
                constexpr int n_words = 8 / S::n_groups;
                int total = S::zero == 0 ? magic_bits : start[j][g], other = 0;  // two chains, to wait less
#pragma unroll
                for (int i = g * n_words; i < g * n_words + n_words / 2; ++i) {
                    total = __dp4a(w[i], q[j][i], total);
                    other = __dp4a(w[i + n_words / 2], q[j][i + n_words / 2], other);
                }
                total += other;
                product += scales.scale[g] * (__int_as_float(total) - magic);
                if constexpr (S::has_min) offset += scales.min[g] * sum[j][g];
            }
            y[j] = d[j] * product - offset;
        }
    }
};

template <DType T, int N>
requires is_float_type<T>
struct ActivationPart<T, N> {
    static constexpr int P = piece_values<T>;
    float x[N][P];

    __device__ void load(const Activations& a, int first, int part, bool inside) {
        const bool aligned = a.n_in % 4 == 0;
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
            for (int i = 0; i < P; i += 4) {
                const int k = P * part + i;
                const float* at = a.x + int64_t{first + j} * a.n_in + k;
                float4 v = {0, 0, 0, 0};
                if (inside && first + j < a.n) {
                    if (aligned) {
                        if (k < a.n_in) v = load_four(at, 0);
                    } else {
                        if (k < a.n_in) v.x = at[0];
                        if (k + 1 < a.n_in) v.y = at[1];
                        if (k + 2 < a.n_in) v.z = at[2];
                        if (k + 3 < a.n_in) v.w = at[3];
                    }
                    if (a.norm && k < a.n_in) v = normed(v, a.scale, load_four(a.norm, k / 4));
                }
                x[j][i] = v.x;
                x[j][i + 1] = v.y;
                x[j][i + 2] = v.z;
                x[j][i + 3] = v.w;
            }
        }
    }

    __device__ void dot(const Piece<T>& weights, int, float* y) const {
        float w[P];
        piece_to_float<T>(weights.bits, w);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            float total = 0;
#pragma unroll
            for (int i = 0; i < P; ++i) total += w[i] * x[j][i];
            y[j] = total;
        }
    }
};

// Sums of each v[i] over the lanes of a warp; lane l gets the one of i = l / (32 / M). M is a power of two up to 32.
// LANES is for the recursion.
template <int M, int LANES = 16>
__device__ inline float sums_of_warp(const float* v, int lane) {
    if constexpr (M == 1) {
        float total = v[0];
#pragma unroll
        for (int rest = LANES; rest > 0; rest /= 2) total += __shfl_xor_sync(~0u, total, rest);
        return total;
    } else {
        const bool upper = (lane & LANES) != 0;
        float half[M / 2];
#pragma unroll
        for (int i = 0; i < M / 2; ++i) {
            const float given = upper ? v[i] : v[i + M / 2], kept = upper ? v[i + M / 2] : v[i];
            half[i] = kept + __shfl_xor_sync(~0u, given, LANES);
        }
        return sums_of_warp<M / 2, LANES / 2>(half, lane);
    }
}

}  // namespace fasa::cuda
