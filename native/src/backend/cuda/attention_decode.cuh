// What the kernels of decode's attention share: how work is dealt out, and how softmax states become one.
//
// Work is (unit, tile of positions): the warps of all grid.x blocks take a unit's tiles in turn; grid.z are the sets of
// query heads that see the same positions, grid.y the units of a set.
#pragma once

#include "backend/cuda/attention_decode.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/row_cache.cuh"

namespace fasa::cuda::decode {

inline constexpr unsigned all_lanes = 0xffffffffu;
inline constexpr int n_tile = 16;       // positions that a warp takes at a time: the depth of a matrix instruction
inline constexpr int max_warps = 8;     // of a block
inline constexpr int max_queries = 16;  // of a unit

struct Args {
    float* y;
    const float* q;
    KvView kv;
    const Step* step;
    Selection selection;  // without positions: everything up to a row's own position
    int n_head;
    int group;           // query heads of a set
    int sets_a_head;     // of a KV head
    int n;               // rows
    int n_unit_queries;  // at most this many of a set's rows x group queries are a unit
    float scale;         // of scores, and to units of log2
    AttentionDecode::Scratch scratch;
    RowCacheView cache;
};

// Queries first .. first + n - 1 of a set (a set's queries are its rows, of each its heads) over one KV head's cache.
struct Unit {
    int set, first, n;
    int32_t seq, pos0;    // of the first row
    int32_t n_pos;        // positions that some query sees
    int32_t n_pos_all;    // that all of them see
    int64_t row;          // of the KV head's position 0 in the planes
    const int32_t* list;  // the positions; nullptr: 0 .. n_pos - 1
};

// The row of a set's i-th query.
__device__ inline int row_of(const Args& a, int i) { return a.n == 1 ? 0 : i / a.group; }

__device__ inline Unit unit_of(const Args& a) {
    Unit u;
    u.set = blockIdx.z;
    u.first = blockIdx.y * a.n_unit_queries;
    u.n = min(a.n_unit_queries, a.n * a.group - u.first);
    const Step step = *a.step;
    u.seq = step.seq;
    u.pos0 = step.pos0;
    const int head_kv = a.sets_a_head == 1 ? u.set : u.set / a.sets_a_head;
    u.row = (int64_t{step.seq} * a.kv.n_head_kv + head_kv) * a.kv.n_ctx;
    if (a.selection.positions) {
        u.list = a.selection.positions + int64_t{u.set} * a.selection.capacity;
        u.n_pos = u.n_pos_all = min(a.selection.count[u.set], a.selection.capacity);
    } else {
        u.list = nullptr;
        u.n_pos = u.pos0 + row_of(a, u.first + u.n - 1) + 1;
        u.n_pos_all = u.pos0 + row_of(a, u.first) + 1;
    }
    return u;
}

// Positions that a query of the unit sees.
__device__ inline int32_t visible(const Args& a, const Unit& u, int query) {
    return u.list ? u.n_pos : u.pos0 + row_of(a, u.first + query) + 1;
}

// The j-th position. May be asked for before the number of positions is known.
__device__ inline int32_t position(const Args& a, const Unit& u, int j) {
    if (!u.list) return j;
    return j < a.selection.capacity ? u.list[j] : 0;
}

// What the cache of rows has of the unit's positions.
__device__ inline CachedRows cached_rows(const Args& a, const Unit& u) {
    return {a.cache, a.kv, u.seq, u.set, a.sets_a_head, u.n_pos, u.pos0, u.first == 0};
}

// Where a query's head lies in q and y.
__device__ inline int64_t offset(const Args& a, const Unit& u, int query) {
    const int i = u.first + query, row = row_of(a, i), head = u.set * a.group + i - row * a.group;
    return (int64_t{row} * a.n_head + head) * a.kv.head_dim;
}

// Blocks of the unit that have a tile; the others leave at once.
__device__ inline int n_busy(const Unit& u) {
    const int n = (u.n_pos + n_tile - 1) / n_tile, n_warps = blockDim.x / 32;
    return min(static_cast<int>(gridDim.x), max(1, (n + n_warps - 1) / n_warps));
}

// What `top` is subtracted as: where all scores are minus infinity, no weight may become NaN.
__device__ inline float finite_top(float top) { return top == -INFINITY ? 0.0f : top; }

// Merges n >= 1 states of one query over disjoint positions, by a warp: every value and sum of state[i * stride] counts
// in the whole as weight[i * stride]. The sum is taken in the order of the lanes, always the same.
__device__ inline SoftmaxState merge(const SoftmaxState* state, int n, int stride, float* weight) {
    const int lane = threadIdx.x % 32;
    float top = -INFINITY, sum = 0;
#pragma unroll 4
    for (int i = lane; i < n; i += 32) top = fmaxf(top, state[i * stride].top);
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(all_lanes, top, step));
#pragma unroll 1
    for (int i = lane; i < n; i += 32) {
        const SoftmaxState part = state[i * stride];
        const float w = exp2f(part.top - finite_top(top));
        weight[i * stride] = w;
        sum += w * part.sum;
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(all_lanes, sum, step);
    return {top, sum};
}

template <int width>
struct alignas(4 * width) Floats {
    float v[width];
};

// For all queries and dims, store(query, d, sum over i of weight[i] values[i]), by the block: values [n][query][d] with
// strides, weight [n][max_queries].
template <int width, class Store>
__device__ void weigh(const float* values, int64_t stride, int query_stride, const float* weight, int n, int n_query,
                      int head_dim, Store store) {
    constexpr int n_ahead = 8;  // loads that wait for memory together
    const int per_query = head_dim / width;
    for (int item = threadIdx.x; item < n_query * per_query; item += blockDim.x) {
        const int query = item / per_query, d = item % per_query * width;
        const float* from = values + int64_t{query} * query_stride + d;
        Floats<width> sum = {};
#pragma unroll 1
        for (int first = 0; first < n; first += n_ahead) {
            Floats<width> part[n_ahead];
#pragma unroll
            for (int i = 0; i < n_ahead; ++i) {
                if (first + i < n) part[i] = *reinterpret_cast<const Floats<width>*>(from + (first + i) * stride);
            }
#pragma unroll
            for (int i = 0; i < n_ahead; ++i) {
                if (first + i >= n) continue;
                const float w = weight[(first + i) * max_queries + query];
                for (int k = 0; k < width; ++k) sum.v[k] = fmaf(w, part[i].v[k], sum.v[k]);
            }
        }
        store(query, d, sum);
    }
}

// True for all threads of the last of n blocks to come here; what the others wrote before is then visible. Leaves the
// counter zero.
__device__ inline bool is_last(unsigned* counter, int n) {
    bool last = false;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(counter, 1u) == static_cast<unsigned>(n - 1);
        if (last) {
            *counter = 0;
            __threadfence();
        }
    }
    return __syncthreads_or(last);
}

// Merges the states of the block's warps, and in a unit's last block those of all blocks; writes y. state
// [warps][max_queries] and values [warps][query][head_dim] with strides, both in shared memory; `shared`, the block's
// dynamic memory, may hold the values and has room for gridDim.x * max_queries floats.
template <int width>
__device__ void finish(const Args& a, const Unit& u, int head_dim, int n_block, const SoftmaxState* state,
                       const float* values, int64_t warp_stride, int query_stride, uint8_t* shared) {
    __shared__ float warp_weight[max_warps * max_queries];
    __shared__ SoftmaxState whole[max_queries];
    const int thread = threadIdx.x, n_warps = blockDim.x / 32;
    const auto merge_all = [&](const SoftmaxState* states, int n, float* weight) {
        for (int query = thread / 32; query < u.n; query += n_warps) {
            const SoftmaxState merged = merge(states + query, n, max_queries, weight + query);
            if (thread % 32 == 0) whole[query] = merged;
        }
        __syncthreads();
    };
    // Here y is complete, 32 / width threads in a row having 32 values in a row: the place to quantise them.
    const auto store_y = [&](int query, int d, Floats<width> sum) {
        const float share = 1.0f / whole[query].sum;
        for (float& v : sum.v) v *= share;
        *reinterpret_cast<Floats<width>*>(a.y + offset(a, u, query) + d) = sum;
    };
    const int64_t block_stride = int64_t{max_queries} * head_dim;
    const int unit = blockIdx.z * gridDim.y + blockIdx.y, first_block = unit * gridDim.x;
    float* of_blocks = a.scratch.values + first_block * block_stride;
    SoftmaxState* state_of_blocks = a.scratch.state + first_block * max_queries;

    __syncthreads();
    merge_all(state, n_warps, warp_weight);
    weigh<width>(values, warp_stride, query_stride, warp_weight, n_warps, u.n, head_dim,
                 [&](int query, int d, const Floats<width>& sum) {
                     if (n_block == 1) return store_y(query, d, sum);
                     float* to = of_blocks + blockIdx.x * block_stride + query * head_dim + d;
                     *reinterpret_cast<Floats<width>*>(to) = sum;
                 });
    if (n_block == 1) return;
    if (thread < u.n) state_of_blocks[blockIdx.x * max_queries + thread] = whole[thread];
    if (!is_last(a.scratch.counter + unit, n_block)) return;

    float* weight = reinterpret_cast<float*>(shared);
    merge_all(state_of_blocks, n_block, weight);
    weigh<width>(of_blocks, block_stride, head_dim, weight, n_block, u.n, head_dim, store_y);
}

}  // namespace fasa::cuda::decode
