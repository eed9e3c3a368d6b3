// The kernel of prefill's attention for head_dim up to 256. A block of four warps holds a tile of queries, rows being
// pairs of a position and a head of one KV head's group, and goes through tiles of keys and values, which arrive by
// turns in a ring of slots while others are worked on: scores, weights and weighted values stay in registers.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/attention_prefill_state.cuh"
#include "backend/cuda/attention_prefill_tiles.cuh"
#include "backend/cuda/ptx.cuh"

namespace fasa::cuda {

template <int dims_, int row_tiles_, int n_keys_, int n_slots_, bool aligned_>
struct PrefillShape {
    static constexpr int dims = dims_;            // head_dim, or more where rows are filled up with zeros
    static constexpr int row_tiles = row_tiles_;  // of 16 rows, in a warp
    static constexpr int n_keys = n_keys_;        // in a tile
    static constexpr int n_slots = n_slots_;      // tiles of keys or values in the ring
    static constexpr bool aligned = aligned_;     // 128-bit copies, head_dim == dims
    static constexpr int n_warps = 4, n_threads = 32 * n_warps;
    static constexpr int n_rows = 16 * row_tiles * n_warps;
    static constexpr int slot_bytes = n_keys * TileLayout<dims>::row_bytes;
    static constexpr int query_bytes = n_rows * TileLayout<dims>::row_bytes;
    static constexpr int n_blocks = dims * row_tiles <= 64 ? 3 : 2;  // on a multiprocessor, by registers
    static constexpr int shared_bytes = query_bytes + n_slots * slot_bytes;
    static_assert(prefill_chunk % n_keys == 0 && n_slots >= 2);
};

template <class S>
__device__ __forceinline__ int head_dim_of(const PrefillArgs& args) {
    return S::aligned ? S::dims : args.kv.head_dim;
}

// What a warp works on: element [i][j] of a fragment [16][8] is in lane 4 (i % 8) + j / 2.
template <class S>
struct PrefillWarp {
    static constexpr int score_tiles = S::n_keys / 8, value_tiles = S::dims / 8, n_halves = 2 * S::row_tiles;

    float scores[S::row_tiles][score_tiles][4];
    uint32_t weights[S::row_tiles][score_tiles][2];  // pairs of halves
    float values[S::row_tiles][value_tiles][4];
    // Of the rows that this thread has numbers of: i / 2 is the tile, i % 2 its upper or lower half. Sums are over this
    // thread's keys.
    SoftmaxStats stats[n_halves];

    __device__ __forceinline__ void reset() {
#pragma unroll
        for (int m = 0; m < S::row_tiles; ++m) {
#pragma unroll
            for (int n = 0; n < value_tiles; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) values[m][n][i] = 0.0f;
            }
        }
#pragma unroll
        for (int i = 0; i < n_halves; ++i) stats[i] = no_keys();
    }

    // Row of the block that stats[i] is about.
    static __device__ __forceinline__ int row_of(int i) {
        const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
        return (warp * S::row_tiles + i / 2) * 16 + i % 2 * 8 + lane / 4;
    }
    // The first of the two keys or dims that this thread has of tile 0; those of tile n are 8 n further.
    static __device__ __forceinline__ int column() { return static_cast<int>(threadIdx.x) % 4 * 2; }
};

// scores = queries keysᵀ
template <class S>
__device__ __forceinline__ void multiply_keys(PrefillWarp<S>& w, const uint8_t* queries, const uint8_t* keys) {
    using Layout = TileLayout<S::dims>;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t query_at = Layout::at(warp * (S::row_tiles * 16) + lane % 16, lane / 16);
    const uint32_t key_at = Layout::at(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int m = 0; m < S::row_tiles; ++m) {
#pragma unroll
        for (int n = 0; n < w.score_tiles; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) w.scores[m][n][i] = 0.0f;
        }
    }
#pragma unroll
    for (int k = 0; k < S::dims / 16; ++k) {
        uint32_t a[S::row_tiles][4];
#pragma unroll
        for (int m = 0; m < S::row_tiles; ++m) {
            ptx::load_matrix(a[m], queries + Layout::advance(query_at, 2 * k) + m * 16 * Layout::row_bytes);
        }
#pragma unroll
        for (int n = 0; n < w.score_tiles; n += 2) {
            uint32_t b[4];
            ptx::load_matrix(b, keys + Layout::advance(key_at, 2 * k) + n * 8 * Layout::row_bytes);
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < S::row_tiles; ++m) {
                ptx::mma_f16(w.scores[m][n], a[m], first);
                ptx::mma_f16(w.scores[m][n + 1], a[m], second);
            }
        }
    }
}

// Scores of keys that a row does not see become -inf. The tile begins at position first.
template <class S>
__device__ __forceinline__ void hide_keys(PrefillWarp<S>& w, const PrefillRows& rows, int32_t first, int32_t end) {
#pragma unroll
    for (int i = 0; i < w.n_halves; ++i) {
        const int32_t n_visible = min(end, rows.n_visible(rows.first + w.row_of(i))) - first - w.column();
#pragma unroll
        for (int n = 0; n < w.score_tiles; ++n) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                if (n * 8 + j >= n_visible) w.scores[i / 2][n][i % 2 * 2 + j] = -INFINITY;
            }
        }
    }
}

// Makes weights of the scores, and what was summed up so far relative to the new base.
template <class S>
__device__ __forceinline__ void weigh(PrefillWarp<S>& w, float scale) {
    float base[w.n_halves];
    bool moved = false;
#pragma unroll
    for (int i = 0; i < w.n_halves; ++i) {
        float top = -INFINITY;
#pragma unroll
        for (int n = 0; n < w.score_tiles; ++n) {
            top = fmaxf(top, fmaxf(w.scores[i / 2][n][i % 2 * 2], w.scores[i / 2][n][i % 2 * 2 + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        base[i] = fmaxf(w.stats[i].base, fmaf(top, scale, -base_below_max));
        moved |= base[i] != w.stats[i].base;
    }
    // Multiplying with 1 would change nothing, so whether other rows of the warp need it does not matter to a row.
    if (__any_sync(0xffffffffu, moved)) {
#pragma unroll
        for (int i = 0; i < w.n_halves; ++i) {
            const float shrink = exp2f(w.stats[i].base - subtrahend(base[i]));
            w.stats[i] = {base[i], w.stats[i].sum * shrink};
#pragma unroll
            for (int n = 0; n < w.value_tiles; ++n) {
#pragma unroll
                for (int j = 0; j < 2; ++j) w.values[i / 2][n][i % 2 * 2 + j] *= shrink;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < w.n_halves; ++i) {
        const float off = subtrahend(base[i]);
#pragma unroll
        for (int n = 0; n < w.score_tiles; ++n) {
            const float* score = &w.scores[i / 2][n][i % 2 * 2];
            const float x = exp2f(fmaf(score[0], scale, -off)), y = exp2f(fmaf(score[1], scale, -off));
            w.stats[i].sum += x;
            w.stats[i].sum += y;
            w.weights[i / 2][n][i % 2] = half_pair(x, y);
        }
    }
}

// values += weights values of the tile
template <class S>
__device__ __forceinline__ void multiply_values(PrefillWarp<S>& w, const uint8_t* tile) {
    using Layout = TileLayout<S::dims>;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t value_at = Layout::at(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < S::n_keys / 16; ++k) {
        uint32_t a[S::row_tiles][4];
#pragma unroll
        for (int m = 0; m < S::row_tiles; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[m][i] = w.weights[m][2 * k + i / 2][i % 2];
        }
#pragma unroll
        for (int n = 0; n < w.value_tiles; n += 2) {
            uint32_t b[4];
            ptx::load_matrix_transposed(b, tile + Layout::advance(value_at, n) + k * 16 * Layout::row_bytes);
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < S::row_tiles; ++m) {
                ptx::mma_f16(w.values[m][n], a[m], first);
                ptx::mma_f16(w.values[m][n + 1], a[m], second);
            }
        }
    }
}

// Adds what drop_infinite took out to the rows that see it.
template <class S>
__device__ __forceinline__ void add_infinite(PrefillWarp<S>& w, const KvHead& cache, const PrefillRows& rows,
                                             int32_t first, int32_t end) {
    int32_t n_visible[w.n_halves];
#pragma unroll
    for (int i = 0; i < w.n_halves; ++i) n_visible[i] = rows.n_visible(rows.first + w.row_of(i));
#pragma unroll 1
    for (int32_t pos = first; pos < min(end, first + S::n_keys); ++pos) {
        const CachePlace place = cache_place<true>(cache, w.column());
        const uint16_t* row = place.at + int64_t{pos} * place.stride;
#pragma unroll
        for (int n = 0; n < w.value_tiles; ++n) {
            if (w.column() + n * 8 >= cache.head_dim) continue;
            const float2 x = __half22float2(*reinterpret_cast<const __half2*>(row + n * 8));
#pragma unroll
            for (int i = 0; i < w.n_halves; ++i) {
                float* sums = &w.values[i / 2][n][i % 2 * 2];
                sums[0] += pos < n_visible[i] && !(fabsf(x.x) <= FLT_MAX) ? x.x : 0.0f;
                sums[1] += pos < n_visible[i] && !(fabsf(x.y) <= FLT_MAX) ? x.y : 0.0f;
            }
        }
    }
}

// Puts the values of one row half of the fragments, from tile n_first on, merged with what is there. For as many reads
// under way as there are registers, some tiles at once.
template <class S, int n_first = 0>
__device__ __forceinline__ void put_values(PrefillWarp<S>& w, int i, float2* to, int head_dim, bool merge,
                                           MergeWeights weights, bool store, float factor) {
    constexpr int n_end = n_first + 16 < PrefillWarp<S>::value_tiles ? n_first + 16 : PrefillWarp<S>::value_tiles;
    if (merge) {
#pragma unroll
        for (int n = n_first; n < n_end; ++n) {
            if (w.column() + n * 8 >= head_dim) continue;
            const float2 x = to[n * 4];
            float* sums = &w.values[i / 2][n][i % 2 * 2];
            sums[0] = merge_values(weights, x.x, sums[0]);
            sums[1] = merge_values(weights, x.y, sums[1]);
        }
    }
    if (store) {
#pragma unroll
        for (int n = n_first; n < n_end; ++n) {
            if (w.column() + n * 8 >= head_dim) continue;
            const float* sums = &w.values[i / 2][n][i % 2 * 2];
            to[n * 4] = {sums[0] * factor, sums[1] * factor};
        }
    }
    if constexpr (n_end < PrefillWarp<S>::value_tiles)
        put_values<S, n_end>(w, i, to, head_dim, merge, weights, store, factor);
}

// Ends a chunk: merges its state with that of the chunks before, which is in memory, and puts the result there, or what
// comes out of it in the end.
template <class S>
__device__ __forceinline__ void put(PrefillWarp<S>& w, const PrefillArgs& args, const PrefillRows& rows, bool merge,
                                    bool finish) {
    const int64_t part = part_offset(args);
    const int head_dim = head_dim_of<S>(args);
#pragma unroll
    for (int i = 0; i < w.n_halves; ++i) {
        SoftmaxStats now = w.stats[i];
        now.sum += __shfl_xor_sync(0xffffffffu, now.sum, 1);
        now.sum += __shfl_xor_sync(0xffffffffu, now.sum, 2);
        const int32_t row = rows.first + w.row_of(i);
        const bool is_row = row < rows.end;
        const int64_t place = part + rows.place(min(row, rows.end - 1));
        MergeWeights weights = {0.0f, 1.0f};
        if (merge) {
            const float2 before = args.stats[place];
            weights = merge_stats({before.x, before.y}, now);
        }
        __syncwarp();  // four lanes have read what one of them writes
        if (is_row && !finish && threadIdx.x % 4 == 0) args.stats[place] = {now.base, now.sum};
        float2* to = reinterpret_cast<float2*>(args.values + place * head_dim + w.column());
        const float factor = finish ? inverse_of(now.sum) : 1.0f;
        put_values(w, i, to, head_dim, merge, weights, is_row, factor);
    }
}

// The ring of tiles: the keys of n_keys positions, then their values, then the keys of the next n_keys positions.
template <class S>
struct PrefillRing {
    uint8_t* slots;
    KvHead cache;
    int32_t end;                   // of the positions
    int current = S::n_slots - 1;  // slot of the tile that is being worked on

    __device__ __forceinline__ uint8_t* slot(int i) const { return slots + i * S::slot_bytes; }

    // Starts the copy of the keys or values from position first on.
    template <bool is_values>
    __device__ __forceinline__ void start(int32_t first, int to) const {
        if (first < end) {
            copy_tile<S::dims, S::n_keys, S::n_threads, S::aligned, is_values>(slot(to), cache, first, end);
        }
        ptx::copy_async_commit();
    }
    __device__ __forceinline__ void fill(int32_t first) const {
#pragma unroll
        for (int i = 0; i < S::n_slots - 1; ++i) {
            i % 2 == 0 ? start<false>(first + i / 2 * S::n_keys, i) : start<true>(first + i / 2 * S::n_keys, i);
        }
    }
    // Waits for the keys or values from position first on, and starts the copy of the tile n_slots - 1 further, into
    // the slot of the one before.
    template <bool is_values>
    __device__ __forceinline__ uint8_t* next(int32_t first) {
        constexpr int ahead = (S::n_slots - (is_values ? 0 : 1)) / 2;
        ptx::copy_async_wait<S::n_slots - 2>();
        __syncthreads();
        const int free = current;
        current = current + 1 == S::n_slots ? 0 : current + 1;
        start<is_values == (S::n_slots % 2 != 0)>(first + ahead * S::n_keys, free);
        return slot(current);
    }
};

template <class S>
__global__ void __launch_bounds__(S::n_threads, S::n_blocks) attend_prefill_mma(const PrefillArgs args) {
    FASA_DYNAMIC_SHARED(shared);
    const PrefillRows rows = rows_of_block(args, S::n_rows);
    const PrefillKeys range = keys_of_block(args, rows);
    if (nothing_to_do(args, range)) return;

    PrefillRing<S> ring = {shared + S::query_bytes,
                           cache_of(args, args.step->seq, static_cast<int>(blockIdx.y), head_dim_of<S>(args)),
                           range.end};
    ring.fill(range.first);
    if constexpr (S::aligned) {
        load_query_chunks<S::dims, S::n_rows, S::n_threads>(shared, args.q, rows);
    } else {
        load_query_pairs<S::dims, S::n_rows, S::n_threads>(shared, args.q, rows, args.kv.head_dim);
    }

    PrefillWarp<S> w;
    // Positions below this are seen by all rows. The shuffle changes nothing but keeps the division out of the loop.
    const int32_t common = __shfl_sync(0xffffffffu, min(range.end, rows.n_visible(rows.first)), 0);
    for (int32_t first = range.first;;) {
        w.reset();
        const int32_t end = min(range.end, (first / prefill_chunk + 1) * prefill_chunk);
        for (; first < end; first += S::n_keys) {
            const bool partial = first + S::n_keys > common;
            multiply_keys(w, shared, ring.template next<false>(first));
            if (partial) hide_keys(w, rows, first, range.end);
            weigh(w, args.scale);
            uint8_t* values = ring.template next<true>(first);
            const bool infinite =
                partial && __syncthreads_or(drop_infinite<S::dims, S::n_keys, S::n_threads>(values)) != 0;
            multiply_values(w, values);
            if (infinite) add_infinite(w, ring.cache, rows, first, range.end);
        }
        const bool last = first >= range.end;
        put(w, args, rows, args.resume || end - prefill_chunk > range.first, last && args.finish);
        if (last) return;
    }
}

}  // namespace fasa::cuda
