// Prefill's attention where no tensor core kernel fits: any even head_dim up to max_head_dim, float arithmetic, a warp
// a row; and the merge of chunks that were worked on at once.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/attention_prefill_state.cuh"
#include "backend/cuda/attention_prefill_tiles.cuh"

namespace fasa::cuda {

inline constexpr int plain_warps = 8;                        // rows in a block
inline constexpr int plain_keys = 32;                        // positions between two looks at the maximum
inline constexpr int plain_pairs = max_head_dim / (2 * 32);  // pairs of dims that a lane holds: lane + 32 i

// A row's query and the weighted sum of values.
struct PlainRow {
    float2 q[plain_pairs], values[plain_pairs];
    SoftmaxStats stats;

    __device__ void reset() {
#pragma unroll
        for (int i = 0; i < plain_pairs; ++i) values[i] = {0.0f, 0.0f};
        stats = no_keys();
    }
};

template <bool is_values>
__device__ inline float2 cache_pair(const KvHead& cache, int32_t pos, int dim) {
    const CachePlace place = cache_place<is_values>(cache, dim);
    return __half22float2(*reinterpret_cast<const __half2*>(place.at + int64_t{pos} * place.stride));
}

__device__ inline float plain_score(const PlainRow& row, const KvHead& cache, int32_t pos, int lane) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < plain_pairs; ++i) {
        const int dim = (lane + 32 * i) * 2;
        if (dim >= cache.head_dim) continue;
        const float2 k = cache_pair<false>(cache, pos, dim);
        sum = fmaf(row.q[i].x, k.x, fmaf(row.q[i].y, k.y, sum));
    }
    for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
    return sum;
}

// Goes on over positions [first, end), at most plain_keys of them.
__device__ inline void plain_step(PlainRow& row, const KvHead& cache, int32_t first, int32_t end, float scale,
                                  int lane) {
    float score = -INFINITY;  // of position first + lane
    for (int32_t pos = first; pos < end; ++pos) {
        const float s = plain_score(row, cache, pos, lane);
        if (lane == pos - first) score = s;
    }
    float top = score;
    for (int other = 16; other > 0; other /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, other));
    const float base = fmaxf(row.stats.base, fmaf(top, scale, -base_below_max)), off = subtrahend(base);
    const float shrink = exp2f(row.stats.base - off), weight = exp2f(fmaf(score, scale, -off));
    row.stats = {base, fmaf(row.stats.sum, shrink, weight)};  // of the lane's own positions
#pragma unroll
    for (int i = 0; i < plain_pairs; ++i) row.values[i] = {row.values[i].x * shrink, row.values[i].y * shrink};
    for (int32_t pos = first; pos < end; ++pos) {
        const float w = __shfl_sync(0xffffffffu, weight, pos - first);
#pragma unroll
        for (int i = 0; i < plain_pairs; ++i) {
            const int dim = (lane + 32 * i) * 2;
            if (dim >= cache.head_dim) continue;
            const float2 v = cache_pair<true>(cache, pos, dim);
            row.values[i] = {fmaf(w, v.x, row.values[i].x), fmaf(w, v.y, row.values[i].y)};
        }
    }
}

__device__ inline void plain_put(PlainRow& row, const PrefillArgs& args, int64_t place, bool merge, bool finish,
                                 int lane) {
    SoftmaxStats now = row.stats;
    for (int other = 16; other > 0; other /= 2) now.sum += __shfl_xor_sync(0xffffffffu, now.sum, other);
    MergeWeights weights = {0.0f, 1.0f};
    if (merge) {
        const float2 before = args.stats[place];
        weights = merge_stats({before.x, before.y}, now);
    }
    __syncwarp();  // all lanes have read what one of them writes
    if (!finish && lane == 0) args.stats[place] = {now.base, now.sum};
    const float inverse = finish ? inverse_of(now.sum) : 1.0f;
    float2* to = reinterpret_cast<float2*>(args.values + place * args.kv.head_dim);
#pragma unroll
    for (int i = 0; i < plain_pairs; ++i) {
        if ((lane + 32 * i) * 2 >= args.kv.head_dim) continue;
        float2 x = row.values[i];
        if (merge) {
            const float2 before = to[lane + 32 * i];
            x = {merge_values(weights, before.x, x.x), merge_values(weights, before.y, x.y)};
        }
        to[lane + 32 * i] = {x.x * inverse, x.y * inverse};
    }
}

__global__ void __launch_bounds__(32 * plain_warps) attend_prefill_plain(const PrefillArgs args) {
    PrefillRows rows = rows_of_block(args, plain_warps);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    rows.first += static_cast<int>(threadIdx.x) / 32;
    if (rows.first >= rows.end) return;
    rows.end = rows.first + 1;
    const PrefillKeys range = keys_of_block(args, rows);
    if (nothing_to_do(args, range)) return;

    const KvHead cache = cache_of(args, args.step->seq, static_cast<int>(blockIdx.y), args.kv.head_dim);
    const int64_t place = rows.place(rows.first);
    PlainRow row;
    const auto* q = reinterpret_cast<const float2*>(args.q + place * args.kv.head_dim);
#pragma unroll
    for (int i = 0; i < plain_pairs; ++i) {
        row.q[i] = (lane + 32 * i) * 2 < args.kv.head_dim ? q[lane + 32 * i] : float2{0.0f, 0.0f};
    }
    row.reset();
    bool merge = args.resume;
    for (int32_t first = range.first; first < range.end; first += plain_keys) {
        if (first % prefill_chunk == 0 && first > range.first) {
            plain_put(row, args, part_offset(args) + place, merge, false, lane);
            row.reset();
            merge = true;
        }
        plain_step(row, cache, first, min(range.end, first + plain_keys), args.scale, lane);
    }
    plain_put(row, args, part_offset(args) + place, merge, args.finish, lane);
}

// Merges the states of n_parts chunks from args.k_first on into y and its state; a warp a row and head.
__global__ void __launch_bounds__(32 * plain_warps)
    merge_prefill_parts(const PrefillArgs args, const float2* part_stats, const float* part_values, int n_parts) {
    const int lane = static_cast<int>(threadIdx.x) % 32, head_dim = args.kv.head_dim;
    const int64_t n_places = int64_t{args.n} * args.n_head;
    const int64_t place = int64_t{blockIdx.x} * plain_warps + threadIdx.x / 32;
    if (place >= n_places) return;
    const int32_t end = min(args.k_end, args.step->pos0 + static_cast<int32_t>(place / args.n_head) + 1);
    const int n_seen = min(n_parts, (end - args.k_first + prefill_chunk - 1) / prefill_chunk);
    const float2 before = args.resume ? args.stats[place] : float2{-INFINITY, 0.0f};
    SoftmaxStats stats = {before.x, before.y};
    for (int dim = lane * 2; dim < head_dim; dim += 64) {
        float2* y = reinterpret_cast<float2*>(args.values + place * head_dim + dim);
        float2 x = args.resume ? *y : float2{0.0f, 0.0f};
        stats = {before.x, before.y};
        for (int part = 0; part < n_seen; ++part) {
            const int64_t at = part * n_places + place;
            const float2 v = *reinterpret_cast<const float2*>(part_values + at * head_dim + dim);
            SoftmaxStats now = {part_stats[at].x, part_stats[at].y};
            if (args.resume || part > 0) {
                const MergeWeights weights = merge_stats(stats, now);
                x = {merge_values(weights, x.x, v.x), merge_values(weights, x.y, v.y)};
            } else {
                x = v;
            }
            stats = now;
        }
        const float inverse = args.finish ? inverse_of(stats.sum) : 1.0f;
        *y = {x.x * inverse, x.y * inverse};
    }
    __syncwarp();  // all lanes have read what one of them writes
    if (!args.finish && lane == 0) args.stats[place] = {stats.base, stats.sum};
}

}  // namespace fasa::cuda
