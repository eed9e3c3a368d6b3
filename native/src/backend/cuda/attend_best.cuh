// A sparse layer of decode in one kernel: a cluster of blocks takes a set, each block a share of its positions. It
// scores them by the dominant plane, chooses with the other blocks (cluster_rank.cuh), attends to those chosen of its
// own share, and merges with the others. Blocks speak with each other through shared memory alone, and only write to
// one another, so that none has to wait for others to end.
#pragma once

#include "backend/cuda/attend_best.h"
#include "backend/cuda/attention_decode_mma.cuh"
#include "backend/cuda/cluster_rank.cuh"
#include "backend/cuda/dominant_rows.cuh"

namespace fasa::cuda::best {

using cluster::n_thread, cluster::n_warp;

inline constexpr int max_group = 8;  // query heads of a set
inline constexpr int n_step = 4;     // rows that a lane works on at a time
inline constexpr int n_stage = 4;    // of a warp's ring of dominant rows
inline constexpr int stage_bytes = n_step * 32 * 16;

// Parts of a block's dynamic shared memory after cluster::Shared, in bytes from its beginning; 128-byte aligned.
struct Layout {
    uint32_t merge, mask, list, scores, ring, end;
};

struct Task {
    decode::Args attend;
    SetQueries queries;
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

// Scores of the block's share go to `scores`, counts of their bins to shared.counts.
template <int lanes>
class Scoring {
   public:
    static constexpr int rows_at_once = 32 / lanes, stage_rows = n_step * rows_at_once;

    __device__ Scoring(const Task& task, const Keys& keys, const cluster::Share& share, uint8_t* ring)
        : rows_(keys, threadIdx.x % lanes), task_(task), share_(share) {
        ring_ = ring + threadIdx.x / 32 * n_stage * stage_bytes + threadIdx.x % 32 * 16;
    }

    // Before the kernel ahead has ended: what it does not write. Only the last position is new.
    __device__ void prefetch(const Ranked& ranked) {
        if (share_.n_pos < 2) ptx::wait_for_previous();
        // A warp's part of the sample; a row more or less makes no difference.
        const int first = threadIdx.x / 32 * (n_rank_sample / n_warp);
        static_assert(n_rank_sample / n_warp == 8);
#pragma unroll
        for (int i = 0; i < n_sample; ++i) {
            const int at = first + i * rows_at_once + threadIdx.x % 32 / lanes;
            sample_[i] = rows_.load(min(ranked.sample(min(at, n_rank_sample - 1)), max(share_.n_pos - 2, 0)));
        }
#pragma unroll
        for (int i = 0; i < n_stage; ++i) copy_next();
    }

    __device__ cluster::Scale find_scale(float expected_cut, float* sample) {
        rows_.set_query(task_.queries, task_.attend.kv.head_dim, blockIdx.y, nullptr);
        const int first = threadIdx.x / 32 * (n_rank_sample / n_warp), lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < n_sample; ++i) {
            float sum = rows_.dot(sample_[i]);
#pragma unroll
            for (int bit = 1; bit < lanes; bit *= 2) sum += __shfl_xor_sync(full_warp, sum, bit);
            const int at = i * rows_at_once + lane / lanes;
            if (lane % lanes == 0 && at < n_rank_sample / n_warp) sample[first + at] = sum;
        }
        __syncthreads();
        return cluster::scale_for(sample, expected_cut);
    }

    __device__ void run(float* scores, uint32_t* counts, const Ranked& ranked, const cluster::Scale& scale) {
        const int lane = threadIdx.x % 32, part = lane % lanes;
        int slot = 0;
        for (int first = threadIdx.x / 32 * stage_rows; first < share_.n; first += n_warp * stage_rows) {
            ptx::copy_async_wait<n_stage - 1>();
            float sum[n_step];
#pragma unroll
            for (int i = 0; i < n_step; ++i) {
                sum[i] = rows_.dot(*reinterpret_cast<const uint4*>(ring_ + slot * stage_bytes + i * 32 * 16));
            }
            copy_next();
            slot = slot + 1 == n_stage ? 0 : slot + 1;
            add_parts<lanes>(sum, lane);

            constexpr int n_whole = n_step > lanes ? n_step / lanes : 1;
#pragma unroll
            for (int j = 0; j < n_whole; ++j) {
                if (part >= n_step) continue;
                const int row = row_of(first, j * lanes + part);
                const int32_t pos = share_.begin + row;
                scores[row] = pos < share_.n_pos ? sum[j] : NAN;
                if (!ranked.holds(pos)) continue;
                const int bin = cluster::bin_of(scale.place(sum[j]));
                if (bin > 0) atomicAdd(&counts[bin], 1u);
            }
        }
    }

   private:
    static constexpr int n_sample = (n_rank_sample / n_warp + rows_at_once - 1) / rows_at_once;

    __device__ static int row_of(int first, int i) { return first + i * rows_at_once + threadIdx.x % 32 / lanes; }

    // The warp's next stage, if there is one; ends a group of copies in any case.
    __device__ void copy_next() {
        const int first = (threadIdx.x / 32 + n_copied_ * n_warp) * stage_rows;
        if (first < share_.n) {
            uint8_t* to = ring_ + n_copied_ % n_stage * stage_bytes;
            if (share_.begin + first + stage_rows >= share_.n_pos) ptx::wait_for_previous();
#pragma unroll
            for (int i = 0; i < n_step; ++i) {
                const int32_t pos = share_.begin + row_of(first, i);
                ptx::copy_async_16(to + i * 32 * 16, rows_.at(pos), rows_.has_dims && pos < share_.n_pos);
            }
            ++n_copied_;
        }
        ptx::copy_async_commit();
    }

    DominantRows<lanes> rows_;
    const Task& task_;
    const cluster::Share& share_;
    uint8_t* ring_;  // this lane's words
    uint4 sample_[n_sample];
    int n_copied_ = 0;
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
                          uint8_t* slots, int n_active, unsigned rank, unsigned n_block) {
    constexpr int per_query = head_dim / 4;
    const auto weight_of = [&](int slot, int query, float top) {
        return exp2f(state[slot * max_group + query].top - decode::finite_top(top));
    };
    const auto top_of = [&](int query) {
        float top = -INFINITY;
        for (int slot = 0; slot < n_active; ++slot) top = fmaxf(top, state[slot * max_group + query].top);
        return top;
    };
    for (int i = threadIdx.x; i < u.n * per_query; i += n_thread) {
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
        *ptx::of_block(to, static_cast<unsigned>(i / merge.n_item)) = sum;
    }
    for (int i = threadIdx.x; i < u.n * static_cast<int>(n_block); i += n_thread) {
        const int query = i % u.n;
        SoftmaxState whole = {top_of(query), 0};
        for (int slot = 0; slot < n_active; ++slot) {
            whole.sum = fmaf(weight_of(slot, query, whole.top), state[slot * max_group + query].sum, whole.sum);
        }
        *ptx::of_block(&merge.state[rank * max_group + query], static_cast<unsigned>(i / u.n)) = whole;
    }
    cluster::wait_for_cluster();

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

template <int head_dim, int lanes>
__global__ void __launch_bounds__(n_thread, head_dim < 256 ? 2 : 1) attend_best(const Task task) {
    FASA_DYNAMIC_SHARED(memory);
    const Layout& at = task.layout;
    cluster::Shared& shared = *reinterpret_cast<cluster::Shared*>(memory);
    uint8_t* const ring = memory + at.ring;
    uint16_t* const list = reinterpret_cast<uint16_t*>(memory + at.list);
    float* const scores = reinterpret_cast<float*>(memory + at.scores);
    const int set = blockIdx.y;
    const unsigned rank = blockIdx.x, n_block = gridDim.x;

    ptx::cluster_arrive();
    const int32_t n_pos = n_past(task.past);
    const Ranked ranked(task.budget, n_pos);
    constexpr int32_t step = Scoring<lanes>::stage_rows > 32 ? Scoring<lanes>::stage_rows : 32;
    const int32_t n_share =
        (n_pos + static_cast<int32_t>(n_block) * step - 1) / (static_cast<int32_t>(n_block) * step) * step;
    const cluster::Share share = {scores,
                                  reinterpret_cast<uint32_t*>(memory + at.mask),
                                  n_share * static_cast<int32_t>(rank),
                                  n_share,
                                  n_pos,
                                  rank,
                                  n_block};
    const Keys keys(task.attend.kv, seq_of(task.past), set, task.queries.n_set);

    Scoring<lanes> scoring(task, keys, share, ring);
    scoring.prefetch(ranked);
    ptx::start_next();
    shared.counts[threadIdx.x] = 0;
    if (threadIdx.x == 0) shared.n_open = shared.n_open_before = 0;
    const float expected_cut = cluster::expected_cut(ranked);
    ptx::wait_for_previous();
    const cluster::Scale scale = scoring.find_scale(expected_cut, shared.sample);
    scoring.run(scores, shared.counts, ranked, scale);
    ptx::copy_async_wait<0>();
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
    const int n_active = attend_listed<head_dim>(task, u, keys, list, share.begin, ring, state);
    const Merge merge(memory + at.merge, u.n * head_dim, static_cast<int>(n_block));
    merge_all<head_dim>(task, u, merge, state, ring, n_active, rank, n_block);
}

}  // namespace fasa::cuda::best
