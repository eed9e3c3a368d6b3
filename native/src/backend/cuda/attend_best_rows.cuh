// The rows that a block of attend_best attends to: which they are, and how they come into shared memory, from the
// cache, wherever that lies, or from the cache of rows.
#pragma once

#include "backend/cuda/attention_decode_mma.cuh"
#include "backend/cuda/cluster_rank.cuh"
#include "backend/cuda/keys.cuh"

namespace fasa::cuda::best {

using cluster::n_thread, cluster::n_warp;

inline constexpr int max_group = 8;  // query heads of a set

// Positions that are always kept do not lie evenly, so the blocks take them in turns.
struct Forced {
    int32_t first, gap;  // number i is position i, from number `first` on i + gap
    int32_t n_best;      // ranked ones, which come between them in a selection
    int32_t n, rank, n_block;

    __device__ Forced(const Ranked& ranked, int32_t n_pos, unsigned block, unsigned n_blocks)
        : first(ranked.first),
          gap(ranked.end - ranked.first),
          n_best(ranked.n_best),
          n(n_pos - gap),
          rank(static_cast<int32_t>(block)),
          n_block(static_cast<int32_t>(n_blocks)) {}
    // The block's own, and the i-th of them: where it is, and its number in the selection.
    __device__ int32_t n_own() const { return (n - rank + n_block - 1) / n_block; }
    __device__ int32_t position(int32_t i) const { return rank + i * n_block + (is_early(i) ? 0 : gap); }
    __device__ int32_t number(int32_t i) const { return rank + i * n_block + (is_early(i) ? 0 : n_best); }
    __device__ bool is_early(int32_t i) const { return rank + i * n_block < first; }
};

// The positions that a block attends to: of those that are always kept the block's own, then the chosen ones of its
// share.
struct Listed {
    int32_t* position;
    const CachedRows& cached;
    int32_t* place;     // what CachedRows::find says of them, if there is a cache of rows
    int32_t* selected;  // the set's part of the selection

    // Row i is that of a position, number `number` of the selection. By a thread, which is told whether the cache has
    // it.
    __device__ bool set(int i, int32_t pos, int32_t number) const {
        position[i] = selected[number] = pos;
        return cached.are_on() && (place[i] = cached.find(number, pos)) >= 0;
    }
    // Where in the cache row i is; negative: not there.
    __device__ int32_t place_of(int i) const { return cached.are_on() ? place[i] : -1; }
    // Rows of which n_found were in the cache and n_missing were not. By a thread.
    __device__ void count(int n_found, int n_missing) const {
        if (cached.are_on()) cached.count(n_found, n_missing);
    }
};

// The block's own of the positions that are always kept. Returns how many; its threads have met.
__device__ inline int list_forced(const Listed& listed, const Forced& forced) {
    const int n = forced.n_own();
    for (int first = 0; first < n; first += n_thread) {
        const int i = first + static_cast<int>(threadIdx.x);
        const bool found = i < n && listed.set(i, forced.position(i), forced.number(i));
        const int n_found = __syncthreads_count(found);
        if (threadIdx.x == 0) listed.count(n_found, min(n - first, n_thread) - n_found);
    }
    return n;
}

// The chosen positions of the block's share, ascending, to rows from n_listed on and to the selection from `number` on.
// Returns how many rows there are then; the block's threads have met.
__device__ inline int list_chosen(const Listed& listed, int n_listed, int32_t number, const cluster::Share& share,
                                  uint64_t* totals) {
    const int32_t n_word = share.n / 32;
    for (int32_t tile = 0; tile < n_word; tile += n_thread) {
        const int32_t word = tile + static_cast<int32_t>(threadIdx.x);
        const uint32_t mask = word < n_word ? share.mask[word] : 0;
        uint64_t total;
        int i = static_cast<int>(cluster::exclusive_sum(static_cast<uint64_t>(__popc(mask)), totals, total));
        int n_found = 0;
        for (uint32_t left = mask; left; left &= left - 1, ++i) {
            const int32_t pos = share.begin + 32 * word + __ffs(static_cast<int>(left)) - 1;
            n_found += listed.set(n_listed + i, pos, number + i);
        }
        if (mask) listed.count(n_found, __popc(mask) - n_found);
        n_listed += static_cast<int>(total);
        number += static_cast<int32_t>(total);
    }
    __syncthreads();
    return n_listed;
}

// Attention to listed rows: a round's tiles lie in shared memory, `n_part` warps take the dims of the values of each.
template <int head_dim>
struct Tiles {
    static constexpr int n_part = head_dim >= 256 ? 4 : head_dim >= 96 ? 2 : 1, value_dim = head_dim / n_part;
    static constexpr int n_slot = n_warp / n_part, row_bytes = decode::Ring<head_dim>::row_bytes,
                         slot_bytes = decode::Ring<head_dim>::tile_bytes;
    static constexpr int query_stride = value_dim + 8, part_floats = max_group * query_stride;
    static_assert(value_dim % 16 == 0 && part_floats * n_part * sizeof(float) <= slot_bytes);

    // Where a query's sums are from dim d on, when the rows are done with.
    __device__ static float* values(uint8_t* slots, int slot, int query, int d) {
        return reinterpret_cast<float*>(slots + slot * slot_bytes) + d / value_dim * part_floats +
               query * query_stride + d % value_dim;
    }
};

// Rows on their way into slots, at most n_step times n_at_once of them: of each the thread has a word. They come
// through registers: from host memory that makes a step of the model 1 % faster than asynchronous copies.
template <int head_dim, int n_step>
struct RowWords {
    using T = Tiles<head_dim>;
    static constexpr int row_words = head_dim / 4, n_at_once = n_thread / row_words, n_row = n_step * n_at_once;
    uint4 word[n_step];

    __device__ static int row(int step) { return static_cast<int>(threadIdx.x) / row_words + step * n_at_once; }
    __device__ static int dim() { return 8 * static_cast<int>(threadIdx.x % row_words); }
    __device__ static bool is_idle() { return static_cast<int>(threadIdx.x) >= n_at_once * row_words; }

    // Listed rows from number `first` on, which are there up to n.
    __device__ void load(const Keys& keys, const Listed& listed, int first, int n) {
        const int at = dim();
        const bool in_dom = at < keys.n_dom;
        const uint16_t* const base = in_dom ? keys.dom + at : keys.rest + (at - keys.n_dom);
        const int32_t stride = in_dom ? keys.n_dom : keys.row_values;
#pragma unroll
        for (int step = 0; step < n_step; ++step) {
            const int i = first + row(step);
            word[step] = make_uint4(0, 0, 0, 0);
            if (i >= n || is_idle()) continue;
            const int32_t place = in_dom ? -1 : listed.place_of(i);
            const uint16_t* from = place < 0 ? base + int64_t{listed.position[i]} * stride
                                             : listed.cached.row_at(place) + (at - keys.n_dom);
            word[step] = *reinterpret_cast<const uint4*>(from);
        }
    }
    // To the slots' rows [row_from, row_to).
    __device__ void store(uint8_t* slots, int row_from, int row_to) const {
#pragma unroll
        for (int step = 0; step < n_step; ++step) {
            const int to = row_from + row(step);
            if (to >= row_to || is_idle()) continue;
            *reinterpret_cast<uint4*>(slots + to * T::row_bytes + 2 * dim()) = word[step];
        }
    }
};

// Of the round that begins at row `first` of n listed ones, up to whole tiles.
template <int head_dim>
__device__ int rows_of_round(int first, int n) {
    constexpr int n_tile = decode::n_tile;
    return min((n - first + n_tile - 1) / n_tile, Tiles<head_dim>::n_slot) * n_tile;
}

// Leaves the rows of a round behind that were not in the cache of rows.
template <int head_dim>
__device__ void leave_rows(const uint8_t* slots, const Keys& keys, const Listed& listed, int first, int n) {
    if (!listed.cached.are_on()) return;
    const int n_row = min(n - first, Tiles<head_dim>::n_slot * decode::n_tile);
    for (int row = threadIdx.x / 32; row < n_row; row += n_warp) {
        uint4* to = reinterpret_cast<uint4*>(listed.cached.staged_at(listed.place[first + row]));
        const uint8_t* from = slots + row * Tiles<head_dim>::row_bytes + 2 * keys.n_dom;
        for (int i = threadIdx.x % 32; to && i < keys.row_values / 8; i += 32) {
            to[i] = reinterpret_cast<const uint4*>(from)[i];
        }
    }
}

}  // namespace fasa::cuda::best
