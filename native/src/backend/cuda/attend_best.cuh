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

// The scores of the block's share come to `scores`, a sample of all to shared.sample, by the block. What lies behind
// the last position are NaN.
__device__ inline void load_scores(const float* from, float* scores, const cluster::Share& share, const Ranked& ranked,
                                   float* sample) {
    for (int i = 4 * threadIdx.x; i < share.n; i += 4 * n_thread) {
        ptx::copy_async_16(scores + i, from + share.begin + i, share.begin + i < share.n_pos);
    }
    ptx::copy_async_commit();
    if (threadIdx.x < n_rank_sample) {
        sample[threadIdx.x] = from[min(ranked.sample(static_cast<int>(threadIdx.x)), share.n_pos - 1)];
    }
    ptx::copy_async_wait<0>();
    __syncthreads();
    if (share.begin + share.n <= share.n_pos) return;
    for (int i = max(share.n_pos - share.begin, 0) + static_cast<int>(threadIdx.x); i < share.n; i += n_thread) {
        scores[i] = NAN;
    }
    __syncthreads();
}

// Counts the ranked scores of the share by their bins.
__device__ inline void count_scores(uint32_t* counts, const cluster::Share& share, const Ranked& ranked,
                                    const cluster::Scale& scale) {
    const int first = max(ranked.first - share.begin, 0), end = min(ranked.end - share.begin, share.n);
#pragma unroll 4
    for (int i = first + static_cast<int>(threadIdx.x); i < end; i += n_thread) {
        const int bin = cluster::bin_of(scale.place(share.scores[i]));
        if (bin > 0) atomicAdd(&counts[bin], 1u);
    }
}

// The chosen positions of the block's share, ascending: their numbers in the share to list, and they themselves to the
// selection, of which n_before lie in blocks before this one. Returns how many they are.
__device__ inline int list_chosen(const cluster::Share& share, uint64_t* totals, uint16_t* list, int32_t* positions) {
    int n_listed = 0;
    const int32_t n_word = share.n / 32;
    for (int32_t tile = 0; tile < n_word; tile += n_thread) {
        const int32_t word = tile + static_cast<int32_t>(threadIdx.x);
        const uint32_t mask = word < n_word ? share.mask[word] : 0;
        uint64_t total;
        int at =
            n_listed + static_cast<int>(cluster::exclusive_sum(static_cast<uint64_t>(__popc(mask)), totals, total));
        for (uint32_t left = mask; left; left &= left - 1, ++at) {
            const int32_t i = 32 * word + __ffs(static_cast<int>(left)) - 1;
            list[at] = static_cast<uint16_t>(i);
            positions[at] = share.begin + i;
        }
        n_listed += static_cast<int>(total);
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

// The listed positions of a block's share: where they and their rows are.
struct Listed {
    const uint16_t* list;  // positions, from `begin` on
    int32_t begin, n;
    int32_t first;  // the number of the block's first one among all of the set
    const CachedRows& cached;
    int32_t* places;  // [n]: their rows in the cache of rows, if that is on; -1: not there

    __device__ int32_t position(int i) const { return begin + list[i]; }

    // By the block.
    __device__ void find_rows() const {
        if (!cached.are_on()) return;
        for (int32_t from = 0; from < n; from += n_thread) {
            const int32_t i = from + static_cast<int32_t>(threadIdx.x);
            if (i < n) places[i] = cached.find(first + i, position(i));
            const int n_found = __syncthreads_count(i < n && places[i] >= 0);
            if (threadIdx.x == 0) cached.count(n_found, min(n - from, n_thread) - n_found);
        }
    }

    // Leaves rows behind that were not in the cache of rows; n_row of them are in shared memory, from number `from` on.
    template <int row_bytes>
    __device__ void leave_rows(const uint8_t* rows, int from, int n_row, const Keys& keys) const {
        if (!cached.are_on()) return;
        for (int row = threadIdx.x / 32; row < n_row && from + row < n; row += n_warp) {
            uint4* to = reinterpret_cast<uint4*>(cached.place(first + from + row));
            const uint4* words = reinterpret_cast<const uint4*>(rows + row * row_bytes + 2 * keys.n_dom);
            for (int i = threadIdx.x % 32; to && i < keys.row_values / 8; i += 32) to[i] = words[i];
        }
    }
};

// Brings listed rows, from number `first` on, into all slots, by the block.
template <int head_dim>
__device__ void copy_rows(uint8_t* slots, const Keys& keys, const Listed& listed, int first) {
    using T = Tiles<head_dim>;
    constexpr int row_words = head_dim / 4;
    const int n_row = min((listed.n - first + decode::n_tile - 1) / decode::n_tile, T::n_slot) * decode::n_tile;
#pragma unroll 4
    for (int i = threadIdx.x; i < n_row * row_words; i += n_thread) {
        const int row = i / row_words, at = 8 * (i % row_words);
        const bool is_valid = first + row < listed.n;
        const int64_t pos = is_valid ? listed.position(first + row) : 0;
        const uint16_t* from =
            at < keys.n_dom ? keys.dom + pos * keys.n_dom + at : keys.rest + pos * keys.row_values + (at - keys.n_dom);
        if (listed.cached.are_on() && is_valid && at >= keys.n_dom) {
            const int32_t place = listed.places[first + row];
            if (place >= 0) from = listed.cached.row_at(place) + (at - keys.n_dom);
        }
        ptx::copy_async_16(slots + row * T::row_bytes + 2 * at, from, is_valid);
    }
    ptx::copy_async_commit();
}

// Attention to the listed rows by the block's warps; states [n_slot][max_group] and values stay for merging. Returns in
// how many slots.
template <int head_dim>
__device__ int attend_listed(const Task& task, const decode::Unit& u, const Keys& keys, const Listed& listed,
                             uint8_t* slots, SoftmaxState* state) {
    using T = Tiles<head_dim>;
    const int slot = threadIdx.x / 32 / T::n_part, part = threadIdx.x / 32 % T::n_part;
    const int n_tile = (u.n_pos + decode::n_tile - 1) / decode::n_tile;
    if (n_tile == 0) return 0;
    copy_rows<head_dim>(slots, keys, listed, 0);
    decode::Queries<head_dim, T::value_dim> queries[1];
    if (slot < n_tile) queries[0].load(task.attend, u, 0);
    for (int tile = slot;; tile += T::n_slot) {
        ptx::copy_async_wait<0>();
        __syncthreads();
        const int first = tile * decode::n_tile, round = (tile - slot) * decode::n_tile;
        listed.leave_rows<T::row_bytes>(slots, round, T::n_slot * decode::n_tile, keys);
        if (tile < n_tile) {
            decode::add_tile(queries, slots + slot * T::slot_bytes, first, first + decode::n_tile <= u.n_pos,
                             part * T::value_dim);
        }
        __syncthreads();
        const int next = tile - slot + T::n_slot;
        if (next >= n_tile) break;
        copy_rows<head_dim>(slots, keys, listed, next * decode::n_tile);
    }
    if (slot < n_tile) {
        queries[0].write(state + slot * max_group, T::values(slots, slot, 0, part * T::value_dim), T::query_stride);
    }
    __syncthreads();
    return min(n_tile, T::n_slot);
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
    const auto weight_of = [&](int slot, int query, float top) {
        return exp2f(state[slot * max_group + query].top - decode::finite_top(top));
    };
    const auto top_of = [&](int query) {
        float top = -INFINITY;
        for (int slot = 0; slot < n_active; ++slot) top = fmaxf(top, state[slot * max_group + query].top);
        return top;
    };
    for (int i = threadIdx.x; i < n_item; i += n_thread) {
        const int query = i / per_query;
        const float top = top_of(query);
        float4 sum = {0, 0, 0, 0};
        for (int slot = 0; slot < n_active; ++slot) {
            const float w = weight_of(slot, query, top);
            const float4 v =
                *reinterpret_cast<const float4*>(Tiles<head_dim>::values(slots, slot, query, i % per_query * 4));
            sum = {fmaf(w, v.x, sum.x), fmaf(w, v.y, sum.y), fmaf(w, v.z, sum.z), fmaf(w, v.w, sum.w)};
        }
        float4* to = merge.values + static_cast<int>(rank) * merge.n_item + i % merge.n_item;
        ptx::send(
            reinterpret_cast<uint4*>(to),
            make_uint4(__float_as_uint(sum.x), __float_as_uint(sum.y), __float_as_uint(sum.z), __float_as_uint(sum.w)),
            box, static_cast<uint32_t>(i / merge.n_item));
    }
    for (int i = threadIdx.x; i < u.n * static_cast<int>(n_block); i += n_thread) {
        const int query = i % u.n;
        SoftmaxState whole = {top_of(query), 0};
        for (int slot = 0; slot < n_active; ++slot) {
            whole.sum = fmaf(weight_of(slot, query, whole.top), state[slot * max_group + query].sum, whole.sum);
        }
        ptx::send(reinterpret_cast<uint64_t*>(&merge.state[rank * max_group + query]),
                  uint64_t{__float_as_uint(whole.sum)} << 32 | __float_as_uint(whole.top), box,
                  static_cast<uint32_t>(i / u.n));
    }
    ptx::wait_for_mail(box, 0);

    for (int i = threadIdx.x; i < 4 * merge.n_item; i += n_thread) {
        const int item = static_cast<int>(rank) * merge.n_item + i / 4, query = item / per_query;
        if (query >= u.n) continue;
        float top = -INFINITY, sum = 0, value = 0;
        for (unsigned block = 0; block < n_block; ++block) {
            top = fmaxf(top, merge.state[block * max_group + query].top);
        }
#pragma unroll 4
        for (unsigned block = 0; block < n_block; ++block) {
            const SoftmaxState part = merge.state[block * max_group + query];
            const float w = exp2f(part.top - decode::finite_top(top));
            sum = fmaf(w, part.sum, sum);
            value = fmaf(w, reinterpret_cast<const float*>(merge.values + block * merge.n_item)[i], value);
        }
        task.attend.y[decode::offset(task.attend, u, query) + item % per_query * 4 + i % 4] = value / sum;
    }
}

template <int head_dim>
__global__ void __launch_bounds__(n_thread, head_dim < 256 ? 2 : 1) attend_best(const Task task) {
    FASA_DYNAMIC_SHARED(memory);
    const Layout& at = task.layout;
    cluster::Shared& shared = *reinterpret_cast<cluster::Shared*>(memory);
    uint8_t* const slots = memory + at.slots;
    uint16_t* const list = reinterpret_cast<uint16_t*>(memory + at.list);
    float* const scores = reinterpret_cast<float*>(memory + at.scores);
    const int set = blockIdx.y;
    const unsigned rank = blockIdx.x, n_block = gridDim.x;

    if (threadIdx.x == 0) cluster::open_mailboxes(shared);
    ptx::cluster_arrive();
    const int32_t n_pos = n_past(task.past);
    const Ranked ranked(task.budget, n_pos);
    const int32_t all = static_cast<int32_t>(n_block) * 32, n_share = (n_pos + all - 1) / all * 32;
    const cluster::Share share = {scores,
                                  reinterpret_cast<uint32_t*>(memory + at.mask),
                                  n_share * static_cast<int32_t>(rank),
                                  n_share,
                                  n_pos,
                                  rank,
                                  n_block};
    const Keys keys(task.attend.kv, seq_of(task.past), set, task.n_set);

    shared.counts[threadIdx.x] = 0;
    if (threadIdx.x == 0) shared.n_open = shared.n_open_before = 0;
    const float expected_cut = cluster::expected_cut(ranked);
    ptx::start_next();
    ptx::wait_for_previous();
    load_scores(task.scores + set * int64_t{task.attend.kv.n_ctx}, scores, share, ranked, shared.sample);
    const cluster::Scale scale = cluster::scale_for(shared.sample, expected_cut);
    count_scores(shared.counts, share, ranked, scale);
    __syncthreads();
    ptx::cluster_wait();  // all blocks run: their shared memory is there

    const uint32_t dom_bytes = 2 * static_cast<uint32_t>(keys.n_dom),
                   rest_bytes = 2 * static_cast<uint32_t>(keys.row_values);
    const cluster::Chosen chosen = cluster::choose(shared, ranked, scale, share, [&](int32_t pos) {
        if (task.attend.kv.host_layer >= 0) return;  // the L2 cache is for device memory
        ptx::prefetch(keys.rest + int64_t{pos} * keys.row_values, rest_bytes);
        ptx::prefetch(keys.dom + int64_t{pos} * keys.n_dom, dom_bytes);
    });
    const int32_t n_forced = min(share.begin, ranked.first) + min(max(share.begin - ranked.end, 0), n_pos - ranked.end);
    const Selection& selection = task.attend.selection;
    int32_t* const positions = selection.positions + int64_t{set} * selection.capacity + chosen.n_before + n_forced;
    const int n_listed = list_chosen(share, shared.totals, list, positions);
    if (rank == 0 && threadIdx.x == 0) {
        selection.count[set] = ranked.keep;
        if (chosen.slowly) atomicAdd(task.n_slow, 1u);
    }

    decode::Unit u = {};
    u.set = set, u.n = task.attend.group;
    u.n_pos = u.n_pos_all = n_listed;
    u.list = positions;
    SoftmaxState* const state = reinterpret_cast<SoftmaxState*>(shared.open);  // [n_slot][max_group]
    const int sets_a_head = task.attend.sets_a_head;
    const CachedRows cached(task.attend.cache, task.attend.kv, seq_of(task.past), set / sets_a_head, set % sets_a_head,
                            sets_a_head, ranked.keep, n_pos - 1, true);
    const Listed listed = {list,     share.begin,
                           n_listed, chosen.n_before + n_forced,
                           cached,   reinterpret_cast<int32_t*>(memory + at.places)};
    listed.find_rows();
    const int n_active = attend_listed<head_dim>(task, u, keys, listed, slots, state);
    const Merge merge(memory + at.merge, u.n * head_dim, static_cast<int>(n_block));
    merge_all<head_dim>(task, u, merge, state, slots, n_active, rank, n_block, &shared.mailbox[cluster::merge_mail]);
}

}  // namespace fasa::cuda::best
