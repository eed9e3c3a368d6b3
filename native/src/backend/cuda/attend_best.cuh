// Attention to the best-scored positions in one kernel: a cluster of blocks takes a set, each block a share of its
// positions. It chooses with the other blocks (cluster_rank.cuh), attends to those chosen of its own share, and merges
// with the others. Blocks speak with each other through shared memory alone: they send what the others need and wait
// until what they need has come. No barrier of the cluster makes them wait for all writes that are under way (which
// takes a microsecond), and none has to wait for others to end.
#pragma once

#include "backend/cuda/attend_best.h"
#include "backend/cuda/attention_decode_mma.cuh"
#include "backend/cuda/cluster_rank.cuh"
#include "backend/cuda/keys.cuh"

namespace fasa::cuda::best {

using cluster::n_thread, cluster::n_warp;

inline constexpr int max_group = 8;  // query heads of a set

struct Task {
    decode::Args attend;
    const float* scores;  // [n_set][n_ctx]
    int n_set;
    Past past;
    Budget budget;
    Layout layout;
    unsigned* n_slow;  // selections that took the slow way
};

// What blocks hand to each other of their softmaxes: states, and values of the queries' dims that the receiver merges.
struct Merge {
    SoftmaxState* state;  // [max_blocks][max_group]
    float4* values;       // [n_block][n_item]
    int n_item;           // four dims each

    __device__ Merge(uint8_t* at, int n_value, int n_block)
        : state(reinterpret_cast<SoftmaxState*>(at)),
          values(reinterpret_cast<float4*>(at + cluster::max_blocks * max_group * sizeof(SoftmaxState))),
          n_item((n_value / 4 + n_block - 1) / n_block) {}
};

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
// through registers because asynchronous copies ask for pieces that host memory delivers at half the speed.
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

template <int head_dim>
using Queries = decode::Queries<head_dim, Tiles<head_dim>::value_dim>;

// Attention to n listed rows by the block's warps, the first n_early of which are in their slots; states
// [n_slot][max_group] and values stay for merging. Returns in how many slots.
template <int head_dim>
__device__ int attend_listed(Queries<head_dim> (&queries)[1], const Keys& keys, const Listed& listed, int n,
                             int n_early, uint8_t* slots, SoftmaxState* state) {
    using T = Tiles<head_dim>;
    constexpr int n_tile = decode::n_tile;
    const int slot = threadIdx.x / 32 / T::n_part, part = threadIdx.x / 32 % T::n_part;
    queries[0].see(n);
    for (int first = 0; first < n; first += T::n_slot * n_tile) {
        const int n_row = rows_of_round<head_dim>(first, n);
        for (int row = first == 0 ? n_early : 0; row < n_row; row += RowWords<head_dim, 4>::n_row) {
            RowWords<head_dim, 4> rows;
            rows.load(keys, listed, first + row, n);
            rows.store(slots, row, n_row);
        }
        __syncthreads();
        leave_rows<head_dim>(slots, keys, listed, first, n);
        if (const int own = first + slot * n_tile; own < n) {
            decode::add_tile(queries, slots + slot * T::slot_bytes, own, own + n_tile <= n, part * T::value_dim);
        }
        __syncthreads();
    }
    if (slot * n_tile < n) {
        queries[0].write(state + slot * max_group, T::values(slots, slot, 0, part * T::value_dim), T::query_stride);
    }
    __syncthreads();
    return min((n + n_tile - 1) / n_tile, T::n_slot);
}

// The softmaxes of a block's slots that have one, of a query.
template <int n_slot>
struct Slots {
    float weight[n_slot];
    SoftmaxState all;

    __device__ Slots(const SoftmaxState* state, int n_active, int query) {
        SoftmaxState of[n_slot];
        all = {-INFINITY, 0};
#pragma unroll
        for (int i = 0; i < n_slot; ++i) {
            of[i] = i < n_active ? state[i * max_group + query] : SoftmaxState{-INFINITY, 0};
            all.top = fmaxf(all.top, of[i].top);
        }
#pragma unroll
        for (int i = 0; i < n_slot; ++i) {
            weight[i] = exp2f(of[i].top - decode::finite_top(all.top));
            all.sum = fmaf(weight[i], of[i].sum, all.sum);
        }
    }
};

// Merges what came from all blocks into the block's part of y: neighbouring lanes share a number.
template <int head_dim>
__device__ void store(const Task& task, const decode::Unit& u, const Merge& merge, unsigned rank, unsigned n_block) {
    constexpr int lanes = 8;
    for (int i = threadIdx.x; i < 4 * merge.n_item * lanes; i += n_thread) {
        const int number = i / lanes, part = i % lanes, item = static_cast<int>(rank) * merge.n_item + number / 4;
        const int query = min(item / (head_dim / 4), u.n - 1);
        SoftmaxState of[cluster::max_blocks / lanes];
        float top = -INFINITY, sum = 0, value = 0;
#pragma unroll
        for (int j = 0; j < cluster::max_blocks / lanes; ++j) {
            const unsigned block = static_cast<unsigned>(part + j * lanes);
            of[j] = block < n_block ? merge.state[block * max_group + query] : SoftmaxState{-INFINITY, 0};
            top = fmaxf(top, of[j].top);
        }
#pragma unroll
        for (int bit = 1; bit < lanes; bit *= 2) top = fmaxf(top, __shfl_xor_sync(full_warp, top, bit));
#pragma unroll
        for (int j = 0; j < cluster::max_blocks / lanes; ++j) {
            const unsigned block = static_cast<unsigned>(part + j * lanes);
            if (block >= n_block) break;
            const float w = exp2f(of[j].top - decode::finite_top(top));
            sum = fmaf(w, of[j].sum, sum);
            value = fmaf(w, reinterpret_cast<const float*>(merge.values + block * merge.n_item)[number], value);
        }
#pragma unroll
        for (int bit = 1; bit < lanes; bit *= 2) {
            sum += __shfl_xor_sync(full_warp, sum, bit);
            value += __shfl_xor_sync(full_warp, value, bit);
        }
        if (part > 0 || item / (head_dim / 4) >= u.n) continue;
        task.attend.y[decode::offset(task.attend, u, query) + item % (head_dim / 4) * 4 + number % 4] = value / sum;
    }
}

// Merges the softmaxes of the block's first n_active slots, hands every block its part of the dims, and merges what
// came from all blocks into y.
template <int head_dim>
__device__ void merge_all(const Task& task, const decode::Unit& u, const Merge& merge, const SoftmaxState* state,
                          uint8_t* slots, int n_active, unsigned rank, unsigned n_block, uint64_t* box) {
    constexpr int per_query = head_dim / 4;
    static_assert(sizeof(float4) == sizeof(uint4) && sizeof(SoftmaxState) == sizeof(uint64_t));
    const int n_item = u.n * per_query,
              n_own = min(max(n_item - static_cast<int>(rank) * merge.n_item, 0), merge.n_item);
    if (threadIdx.x == 0) ptx::expect_mail(box, n_block * (n_own * sizeof(float4) + u.n * sizeof(SoftmaxState)));
    using T = Tiles<head_dim>;
    for (int i = threadIdx.x; i < n_item; i += n_thread) {
        const int query = i / per_query;
        const Slots<T::n_slot> weigh(state, n_active, query);
        float4 sum = {0, 0, 0, 0};
#pragma unroll
        for (int slot = 0; slot < T::n_slot; ++slot) {
            if (slot >= n_active) break;
            const float w = weigh.weight[slot];
            const float4 v = *reinterpret_cast<const float4*>(T::values(slots, slot, query, i % per_query * 4));
            sum = {fmaf(w, v.x, sum.x), fmaf(w, v.y, sum.y), fmaf(w, v.z, sum.z), fmaf(w, v.w, sum.w)};
        }
        float4* to = merge.values + static_cast<int>(rank) * merge.n_item + i % merge.n_item;
        ptx::send(
            reinterpret_cast<uint4*>(to),
            make_uint4(__float_as_uint(sum.x), __float_as_uint(sum.y), __float_as_uint(sum.z), __float_as_uint(sum.w)),
            box, static_cast<uint32_t>(i / merge.n_item));
    }
    // From the last thread on, as the first ones are busy.
    for (int i = n_thread - 1 - static_cast<int>(threadIdx.x); i < u.n * static_cast<int>(n_block); i += n_thread) {
        const int query = i % u.n;
        const SoftmaxState whole = Slots<T::n_slot>(state, n_active, query).all;
        ptx::send(reinterpret_cast<uint64_t*>(&merge.state[rank * max_group + query]),
                  uint64_t{__float_as_uint(whole.sum)} << 32 | __float_as_uint(whole.top), box,
                  static_cast<uint32_t>(i / u.n));
    }
    ptx::wait_for_mail(box, 0);
    store<head_dim>(task, u, merge, rank, n_block);
}

template <int head_dim>
__global__ void __launch_bounds__(n_thread, head_dim < 256 ? 2 : 1) attend_best(const Task task) {
    FASA_DYNAMIC_SHARED(memory);
    const Layout& at = task.layout;
    cluster::Shared& shared = *reinterpret_cast<cluster::Shared*>(memory);
    uint8_t* const slots = memory + at.slots;
    const int set = blockIdx.y;
    const unsigned rank = blockIdx.x, n_block = gridDim.x;

    if (threadIdx.x == 0) cluster::open_mailboxes(shared);
    ptx::cluster_arrive();
    const int32_t n_pos = n_past(task.past);
    const Ranked ranked(task.budget, n_pos);
    const int32_t all = static_cast<int32_t>(n_block) * 32, n_share = (n_pos + all - 1) / all * 32;
    const cluster::Share share = {
        task.scores + set * int64_t{task.attend.kv.n_ctx} + n_share * static_cast<int32_t>(rank),
        reinterpret_cast<uint32_t*>(memory + at.mask),
        n_share * static_cast<int32_t>(rank),
        n_share,
        n_pos,
        rank,
        n_block};
    const Keys keys(task.attend.kv, seq_of(task.past), set, task.n_set);

    const bool on_host = task.attend.kv.host_layer >= 0;  // the rows, not the dominant keys
    const uint32_t dom_bytes = 2 * static_cast<uint32_t>(keys.n_dom),
                   rest_bytes = 2 * static_cast<uint32_t>(keys.row_values);
    const auto fetch = [&](int32_t pos) {
        if (!on_host) ptx::prefetch(keys.rest + int64_t{pos} * keys.row_values, rest_bytes);
        if (dom_bytes > 0) ptx::prefetch(keys.dom + int64_t{pos} * keys.n_dom, dom_bytes);
    };
    cluster::clear(shared, share);
    const Forced forced(ranked, n_pos, rank, n_block);
    for (int i = threadIdx.x; i < forced.n_own(); i += n_thread) fetch(forced.position(i));
    __syncthreads();

    ptx::start_next();
    ptx::wait_for_previous();
    const Selection& selection = task.attend.selection;
    const CachedRows cached(task.attend.cache, task.attend.kv, seq_of(task.past), set, task.attend.sets_a_head,
                            ranked.keep, n_pos - 1, true);
    const Listed listed = {reinterpret_cast<int32_t*>(memory + at.list), cached,
                           reinterpret_cast<int32_t*>(memory + at.places),
                           selection.positions + int64_t{set} * selection.capacity};
    const int n_forced = list_forced(listed, forced);
    RowWords<head_dim, 1> early;
    const int n_early = min(n_forced, early.n_row);
    early.load(keys, listed, 0, n_early);

    decode::Unit u = {};
    u.set = set, u.n = task.attend.group;
    Queries<head_dim> queries[1];
    cluster::Chosen chosen = {0, false};
    if (ranked.n_best < ranked.end - ranked.first && ranked.n_best > 0) {
        const cluster::Scale scale = cluster::count_candidates(shared, ranked, share);
        ptx::cluster_wait();  // all blocks run: their shared memory is there
        chosen = cluster::choose_best(shared, ranked, scale, share, fetch, [&] { queries[0].load(task.attend, u, 0); });
    } else {
        chosen.n_before = cluster::choose_all_or_none(ranked, share);
        queries[0].load(task.attend, u, 0);
        ptx::cluster_wait();
    }
    const int n_listed = list_chosen(listed, n_forced, ranked.first + chosen.n_before, share, shared.totals);
    if (rank == 0 && threadIdx.x == 0) {
        selection.count[set] = ranked.keep;
        if (chosen.slowly) atomicAdd(task.n_slow, 1u);
    }

    SoftmaxState* const state = reinterpret_cast<SoftmaxState*>(shared.open);  // [n_slot][max_group]
    early.store(slots, 0, n_early);
    const int n_active = attend_listed<head_dim>(queries, keys, listed, n_listed, n_early, slots, state);
    const Merge merge(memory + at.merge, u.n * head_dim, static_cast<int>(n_block));
    merge_all<head_dim>(task, u, merge, state, slots, n_active, rank, n_block, &shared.mailbox[cluster::merge_mail]);
}

}  // namespace fasa::cuda::best
