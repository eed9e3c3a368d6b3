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

// The chosen positions of the block's share, ascending: their numbers in the share to list, and they themselves to the
// selection, of which n_before lie in blocks before this one. Returns how many they are.
__device__ inline int list_chosen(const cluster::Share& share, uint64_t* totals, uint16_t* list, int32_t* positions) {
    int n_listed = 0;
    const int32_t n_word = share.n / 32;
    for (int32_t tile = 0; tile < n_word; tile += n_thread) {
        const int32_t word = tile + static_cast<int32_t>(threadIdx.x);
        const uint32_t mask = word < n_word ? share.mask[word] : 0;
        uint64_t total;
        const int at =
            n_listed + static_cast<int>(cluster::exclusive_sum(static_cast<uint64_t>(__popc(mask)), totals, total));
        const int lane = threadIdx.x % 32;
        for (uint32_t left = __ballot_sync(full_warp, mask); left; left &= left - 1) {
            const int from = __ffs(static_cast<int>(left)) - 1;
            const uint32_t bits = __shfl_sync(full_warp, mask, from);
            const int number = __shfl_sync(full_warp, at, from) + __popc(bits & ((1u << lane) - 1));
            const int i = 32 * (word - lane + from) + lane;
            if (!(bits >> lane & 1)) continue;
            list[number] = static_cast<uint16_t>(i);
            positions[number] = share.begin + i;
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

// Brings listed rows, from number `first` on, into all slots, by the block.
template <int head_dim>
__device__ void copy_rows(uint8_t* slots, const Keys& keys, const uint16_t* list, int32_t begin, int first,
                          int n_listed) {
    using T = Tiles<head_dim>;
    constexpr int row_words = head_dim / 4;
    const int n_row = min((n_listed - first + decode::n_tile - 1) / decode::n_tile, T::n_slot) * decode::n_tile;
#pragma unroll 4
    for (int i = threadIdx.x; i < n_row * row_words; i += n_thread) {
        const int row = i / row_words, at = 8 * (i % row_words);
        const bool is_valid = first + row < n_listed;
        const int64_t pos = is_valid ? begin + list[first + row] : 0;
        const uint16_t* from =
            at < keys.n_dom ? keys.dom + pos * keys.n_dom + at : keys.rest + pos * keys.row_values + (at - keys.n_dom);
        ptx::copy_async_16(slots + row * T::row_bytes + 2 * at, from, is_valid);
    }
    ptx::copy_async_commit();
}

// Attention to the listed rows by the block's warps; states [n_slot][max_group] and values stay for merging. Returns in
// how many slots.
template <int head_dim>
__device__ int attend_listed(const Task& task, const decode::Unit& u, const Keys& keys, const uint16_t* list,
                             int32_t begin, uint8_t* slots, SoftmaxState* state) {
    using T = Tiles<head_dim>;
    const int slot = threadIdx.x / 32 / T::n_part, part = threadIdx.x / 32 % T::n_part;
    const int n_tile = (u.n_pos + decode::n_tile - 1) / decode::n_tile;
    if (n_tile == 0) return 0;
    copy_rows<head_dim>(slots, keys, list, begin, 0, u.n_pos);
    decode::Queries<head_dim, T::value_dim> queries[1];
    if (slot < n_tile) queries[0].load(task.attend, u, 0);
    for (int tile = slot;; tile += T::n_slot) {
        ptx::copy_async_wait<0>();
        __syncthreads();
        const int first = tile * decode::n_tile;
        if (tile < n_tile) {
            decode::add_tile(queries, slots + slot * T::slot_bytes, first, first + decode::n_tile <= u.n_pos,
                             part * T::value_dim);
        }
        __syncthreads();
        const int next = tile - slot + T::n_slot;
        if (next >= n_tile) break;
        copy_rows<head_dim>(slots, keys, list, begin, next * decode::n_tile, u.n_pos);
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

    const uint32_t dom_bytes = 2 * static_cast<uint32_t>(keys.n_dom),
                   rest_bytes = 2 * static_cast<uint32_t>(keys.row_values);
    const auto fetch = [&](int32_t pos) {
        if (task.attend.kv.host_layer >= 0) return;  // the L2 cache is for device memory
        ptx::prefetch(keys.rest + int64_t{pos} * keys.row_values, rest_bytes);
        ptx::prefetch(keys.dom + int64_t{pos} * keys.n_dom, dom_bytes);
    };
    cluster::clear(shared, share);
    __syncthreads();
    const bool chooses_all = ranked.n_best == ranked.end - ranked.first;
    share.choose_all(0, chooses_all ? n_pos : ranked.first, fetch);
    share.choose_all(chooses_all ? n_pos : ranked.end, n_pos, fetch);

    ptx::start_next();
    ptx::wait_for_previous();
    cluster::Chosen chosen = {chooses_all ? min(max(share.begin, ranked.first), ranked.end) - ranked.first : 0, false};
    if (!chooses_all && ranked.n_best > 0) {
        const cluster::Scale scale = cluster::count_candidates(shared, ranked, share);
        ptx::cluster_wait();  // all blocks run: their shared memory is there
        chosen = cluster::choose_best(shared, ranked, scale, share, fetch);
    } else {
        __syncthreads();
        ptx::cluster_wait();
    }
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
    const int n_active = attend_listed<head_dim>(task, u, keys, list, share.begin, slots, state);
    const Merge merge(memory + at.merge, u.n * head_dim, static_cast<int>(n_block));
    merge_all<head_dim>(task, u, merge, state, slots, n_active, rank, n_block, &shared.mailbox[cluster::merge_mail]);
}

}  // namespace fasa::cuda::best
