// Scores by the dominant plane of the cache: queries of sets, rows of the plane, and how lanes share them.
#pragma once

#include <cuda_fp16.h>

#include <cstring>

#include "backend/cuda/keys.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/rank.cuh"

namespace fasa::cuda {

// Dims d, d + 32 and so on of the sum of a set's queries, heads in ascending order; 0 from `end` on.
template <int n>
__device__ inline void sum_queries(float (&sum)[n], const SetQueries& queries, int head_dim, int set, int d, int end) {
    const int heads = queries.n_head / queries.n_set;
    const int64_t first = int64_t{set} * heads * head_dim + d;
#pragma unroll
    for (float& x : sum) x = 0;
    if (!queries.mask) {  // nothing to look at between loads, so that they run side by side
#pragma unroll 4
        for (int head = 0; head < heads; ++head) {
#pragma unroll
            for (int i = 0; i < n; ++i) {
                if (d + 32 * i < end) sum[i] += queries.q[first + int64_t{head} * head_dim + 32 * i];
            }
        }
        return;
    }
    for (int head = 0; head < heads; ++head) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const int64_t at = first + int64_t{head} * head_dim + 32 * i;
            if (d + 32 * i < end) sum[i] += queries.mask[at] ? queries.q[at] : 0.0f;
        }
    }
}

// Dim d of it.
__device__ inline float summed_query(const SetQueries& queries, int head_dim, int set, int d) {
    float sum[1];
    sum_queries(sum, queries, head_dim, set, d, d + 1);
    return sum[0];
}

// `lanes` neighbouring lanes share a row; lane `part` of them takes every chunk of dims with number part mod lanes.

// Rows of the dominant plane alone, 8 dims a lane: what decoding reads. n_dom is a multiple of 8, at most 8 * lanes.
template <int lanes_>
struct DominantRows {
    static constexpr int lanes = lanes_;
    using Loaded = uint4;

    const uint16_t* dom;
    int32_t n_dom;
    int part;
    bool has_dims;
    float q[8];

    __device__ DominantRows(const Keys& keys, int lane_part)
        : dom(keys.dom + 8 * lane_part), n_dom(keys.n_dom), part(lane_part), has_dims(8 * lane_part < keys.n_dom) {}

    __device__ void set_query(const SetQueries& queries, int head_dim, int set, float*) {
        const int heads = queries.n_head / queries.n_set;
        const float* from = queries.q + int64_t{set} * heads * head_dim + 8 * part;
        const bool by_words = !queries.mask && head_dim % 4 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
        if (!has_dims || !by_words) {
#pragma unroll
            for (int d = 0; d < 8; ++d) q[d] = has_dims ? summed_query(queries, head_dim, set, 8 * part + d) : 0.0f;
            return;
        }
#pragma unroll
        for (int d = 0; d < 8; ++d) q[d] = 0;
#pragma unroll 4
        for (int head = 0; head < heads; ++head) {
            const float4 low = *reinterpret_cast<const float4*>(from + head * head_dim),
                         high = *reinterpret_cast<const float4*>(from + head * head_dim + 4);
            q[0] += low.x, q[1] += low.y, q[2] += low.z, q[3] += low.w;
            q[4] += high.x, q[5] += high.y, q[6] += high.z, q[7] += high.w;
        }
    }
    // Where this lane's dims of a row lie.
    __device__ const uint16_t* at(int64_t pos) const { return dom + pos * n_dom; }
    __device__ Loaded load(int64_t pos) const { return has_dims ? ptx::load_once(at(pos)) : make_uint4(0, 0, 0, 0); }
    __device__ float dot(const Loaded& keys) const {
        __half2 pair[4];
        memcpy(pair, &keys, sizeof(pair));
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 k = __half22float2(pair[i]);
            sum = fmaf(q[2 * i], k.x, sum);
            sum = fmaf(q[2 * i + 1], k.y, sum);
        }
        return sum;
    }
};

// Adds up the parts of n_step rows over the lanes that share them, each lane giving away half of its rows at every
// exchange. What is left at sum[j] is row j * lanes + part, complete; with more lanes than rows, row part mod n_step.
template <int lanes, int n_step>
__device__ void add_parts(float (&sum)[n_step], int lane) {
    int n = n_step;
#pragma unroll
    for (int bit = 1; bit < lanes; bit *= 2) {
        if (n == 1) {
            sum[0] += __shfl_xor_sync(full_warp, sum[0], bit);
            continue;
        }
        n /= 2;
        const bool odd = lane & bit;
#pragma unroll
        for (int i = 0; i < n_step / 2; ++i) {
            if (i >= n) break;
            const float keep = odd ? sum[2 * i + 1] : sum[2 * i], give = odd ? sum[2 * i] : sum[2 * i + 1];
            sum[i] = keep + __shfl_xor_sync(full_warp, give, bit);
        }
    }
}

}  // namespace fasa::cuda
