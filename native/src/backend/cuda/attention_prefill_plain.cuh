// Prefill's attention where no tensor core kernel fits: any head_dim up to max_head_dim, float arithmetic, a warp a
// row; and the merge of chunks that were worked on at once.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/attention_prefill_state.cuh"
#include "backend/cuda/attention_prefill_tiles.cuh"

namespace fasa::cuda {

inline constexpr int plain_warps = 8;                 // rows in a block
inline constexpr int plain_keys = 32;                 // positions between two looks at the maximum
inline constexpr int plain_dims = max_head_dim / 32;  // that a lane holds: lane + 32 i

// A row's query and the weighted sum of values.
struct PlainRow {
    float q[plain_dims], values[plain_dims];
    SoftmaxStats stats;

    __device__ void reset() {
#pragma unroll
        for (float& value : values) value = 0.0f;
        stats = no_keys();
    }
};

__device__ inline float as_float(uint16_t half_bits) { return __half2float(__ushort_as_half(half_bits)); }

__device__ inline float plain_score(const PlainRow& row, const KvHead& cache, int32_t pos, int lane) {
    const uint16_t* dom = cache.dom + int64_t{pos} * cache.n_dom;
    const uint16_t* rest = cache.rest + int64_t{pos} * (2 * cache.head_dim - cache.n_dom);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < plain_dims; ++i) {
        const int dim = lane + 32 * i;
        if (dim >= cache.head_dim) continue;
        sum = fmaf(row.q[i], as_float(dim < cache.n_dom ? dom[dim] : rest[dim - cache.n_dom]), sum);
    }
    for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
    return sum;
}

// Goes on over positions [first, end), at most plain_keys of them.
__device__ inline void plain_step(PlainRow& row, const KvHead& cache, int32_t first, int32_t end, float scale,
                                  int lane) {
    float score = -INFINITY;  // of position first + lane
#pragma unroll 1
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
    for (float& value : row.values) value *= shrink;
#pragma unroll 1
    for (int32_t pos = first; pos < end; ++pos) {
        const float w = __shfl_sync(0xffffffffu, weight, pos - first);
        const uint16_t* value =
            cache.rest + int64_t{pos} * (2 * cache.head_dim - cache.n_dom) + (cache.head_dim - cache.n_dom);
#pragma unroll
        for (int i = 0; i < plain_dims; ++i) {
            const int dim = lane + 32 * i;
            if (dim < cache.head_dim) row.values[i] = fmaf(w, as_float(value[dim]), row.values[i]);
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
    float* to = args.values + place * args.kv.head_dim;
#pragma unroll
    for (int i = 0; i < plain_dims; ++i) {
        const int dim = lane + 32 * i;
        if (dim >= args.kv.head_dim) continue;
        const float x = merge ? merge_values(weights, to[dim], row.values[i]) : row.values[i];
        to[dim] = x * inverse;
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
    const float* q = args.q + place * args.kv.head_dim;
#pragma unroll
    for (int i = 0; i < plain_dims; ++i) row.q[i] = lane + 32 * i < args.kv.head_dim ? q[lane + 32 * i] : 0.0f;
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

// `width` floats that lie together.
template <int width>
struct alignas(4 * width) PartValues {
    float v[width];
};

// Merges the states of n_parts chunks from args.k_first on into y and its state; a warp a row and head, whose lanes
// take `width` dims at a time: a divisor of head_dim.
template <int width>
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
    for (int dim = lane * width; dim < head_dim; dim += 32 * width) {
        auto* y = reinterpret_cast<PartValues<width>*>(args.values + place * head_dim + dim);
        PartValues<width> x = {};
        if (args.resume) x = *y;
        stats = {before.x, before.y};
        for (int part = 0; part < n_seen; ++part) {
            const int64_t at = part * n_places + place;
            const auto v = *reinterpret_cast<const PartValues<width>*>(part_values + at * head_dim + dim);
            SoftmaxStats now = {part_stats[at].x, part_stats[at].y};
            const bool merge = args.resume || part > 0;
            const MergeWeights weights = merge ? merge_stats(stats, now) : MergeWeights{0.0f, 1.0f};
            for (int i = 0; i < width; ++i) x.v[i] = merge ? merge_values(weights, x.v[i], v.v[i]) : v.v[i];
            stats = now;
        }
        const float inverse = args.finish ? inverse_of(stats.sum) : 1.0f;
        for (float& value : x.v) value *= inverse;
        *y = x;
    }
    __syncwarp();  // all lanes have read what one of them writes
    if (!args.finish && lane == 0) args.stats[place] = {stats.base, stats.sum};
}

}  // namespace fasa::cuda
