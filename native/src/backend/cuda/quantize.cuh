// Parts of kernels that norm rows and put out int8 activations (quantize.h).
#pragma once

#include <cstdint>

#include "backend/cuda/quantize.h"

namespace fasa::cuda {

// As ACTIVATION_MIN of backend/cpu/quant.h.
inline constexpr float BLOCK_MIN = 0x1p-100f;

struct QuantizedFour {
    uint32_t q;  // four bytes
    float d;
};

// Four values of a block of 32, of which lanes 8 b to 8 b + 7 hold a quarter each, in order. All lanes of the warp take
// part. Without fused multiplication and with exact division, so that the CPU gives the same bits.
__device__ inline QuantizedFour quantize_four(const float4& x) {
    uint32_t max_bits = 0;  // of |x|: as bits, NaN is above infinity and both are above any number
    for (const float v : {x.x, x.y, x.z, x.w}) max_bits = max(max_bits, __float_as_uint(v) & 0x7fffffffu);
#pragma unroll
    for (int lanes = 1; lanes < 8; lanes *= 2) max_bits = max(max_bits, __shfl_xor_sync(~0u, max_bits, lanes));
    if (max_bits >= 0x7f800000u) return {0, __uint_as_float(0x7fc00000u)};
    if (max_bits < __float_as_uint(BLOCK_MIN)) return {0, 0.0f};

    const float largest = __uint_as_float(max_bits), inverse = __fdiv_rn(127.0f, largest);
    uint32_t q = 0;
    int shift = 0;
    for (const float v : {x.x, x.y, x.z, x.w}) {
        q |= (static_cast<uint32_t>(__float2int_rn(__fmul_rn(v, inverse))) & 255u) << shift;
        shift += 8;
    }
    return {q, __fdiv_rn(largest, 127.0f)};
}

struct QuantizedEight {
    uint2 q;
    float d;
};

__device__ inline uint32_t quantized_word(const float4& x, float inverse) {
    uint32_t q = 0;
    int shift = 0;
    for (const float v : {x.x, x.y, x.z, x.w}) {
        q |= (static_cast<uint32_t>(__float2int_rn(__fmul_rn(v, inverse))) & 255u) << shift;
        shift += 8;
    }
    return q;
}

// The same of eight values: lanes 4 b to 4 b + 3 hold a quarter of a block each.
__device__ inline QuantizedEight quantize_eight(const float4& low, const float4& high) {
    uint32_t max_bits = 0;
    for (const float v : {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}) {
        max_bits = max(max_bits, __float_as_uint(v) & 0x7fffffffu);
    }
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) max_bits = max(max_bits, __shfl_xor_sync(~0u, max_bits, lanes));
    if (max_bits >= 0x7f800000u) return {{0, 0}, __uint_as_float(0x7fc00000u)};
    if (max_bits < __float_as_uint(BLOCK_MIN)) return {{0, 0}, 0.0f};
    const float largest = __uint_as_float(max_bits), inverse = __fdiv_rn(127.0f, largest);
    return {{quantized_word(low, inverse), quantized_word(high, inverse)}, __fdiv_rn(largest, 127.0f)};
}

__device__ inline void store_eight(const Quantized& to, int i, const QuantizedEight& v) {
    reinterpret_cast<uint2*>(to.q)[i] = v.q;
    if (i % 4 == 0) to.d[i / 4] = v.d;
}

// Stores them: values 4 i to 4 i + 3 of q, the block's d.
__device__ inline void store_four(const Quantized& to, int64_t i, const QuantizedFour& v) {
    reinterpret_cast<uint32_t*>(to.q)[i] = v.q;
    if (i % 8 == 0) to.d[i / 8] = v.d;
}

__device__ inline float4 load_four(const float* x, int64_t i) { return reinterpret_cast<const float4*>(x)[i]; }

__device__ inline float sum_of_warp(float v) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(~0u, v, lanes);
    return v;
}

__device__ inline float square_sum(const float4& v) { return v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w); }

// 1 / rms of a row of n values whose squares the threads of the block have summed in parts, for all of them; `sums` is
// shared memory for 32 floats.
__device__ inline float norm_scale_of(float sum, int n, float eps, float* sums) {
    const int n_threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    sum = sum_of_warp(sum);
    if (thread % 32 == 0) sums[thread / 32] = sum;
    __syncthreads();
    sum = sum_of_warp(thread % 32 < n_threads / 32 ? sums[thread % 32] : 0.0f);
    return 1.0f / sqrtf(sum / static_cast<float>(n) + eps);
}

// The same of the row x [n]. Aligned: x is, to 16 bytes, and n is a multiple of 4.
template <bool aligned>
__device__ inline float norm_scale(const float* x, int n, float eps, float* sums) {
    const int n_threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    float sum = 0;
    if constexpr (aligned) {
        for (int i = thread; i < n / 4; i += n_threads) sum += square_sum(load_four(x, i));
    } else {
        for (int i = thread; i < n; i += n_threads) sum += x[i] * x[i];
    }
    return norm_scale_of(sum, n, eps, sums);
}

__device__ inline float4 normed(const float4& x, float scale, const float4& weight) {
    return {x.x * scale * weight.x, x.y * scale * weight.y, x.z * scale * weight.z, x.w * scale * weight.w};
}

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }

}  // namespace fasa::cuda
