// Attention to the best-scored positions in one kernel: a cluster of blocks takes a set, each block a share of its
// positions. It chooses with the other blocks (cluster_rank.cuh), attends to those chosen of its own share, and merges
// with the others. Blocks speak with each other through shared memory alone: they send what the others need and wait
// until what they need has come. No barrier of the cluster makes them wait for all writes that are under way (which
// takes a microsecond), and none has to wait for others to end.
#pragma once

#include "backend/cuda/attend_best.h"
#include "backend/cuda/attend_best_merge.cuh"
#include "backend/cuda/attend_best_rows.cuh"
#include "backend/cuda/attention_decode_mma.cuh"
#include "backend/cuda/cluster_rank.cuh"
#include "backend/cuda/keys.cuh"

namespace fasa::cuda::best {

struct Task {
    decode::Args attend;
    const float* scores;  // [n_set][n_ctx]
    int n_set;
    Past past;
    Budget budget;
    Layout layout;
    unsigned* n_slow;  // selections that took the slow way
};

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
    merge_all<head_dim>(task.attend, u, merge, state, slots, n_active, rank, n_block,
                        &shared.mailbox[cluster::merge_mail]);
}

}  // namespace fasa::cuda::best
