// How the blocks of attend_best merge their softmaxes: each takes a part of the queries' dims and gets what all have of
// it.
#pragma once

#include "backend/cuda/attend_best_rows.cuh"

namespace fasa::cuda::best {

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
__device__ void store(const decode::Args& args, const decode::Unit& u, const Merge& merge, unsigned rank,
                      unsigned n_block) {
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
        args.y[decode::offset(args, u, query) + item % (head_dim / 4) * 4 + number % 4] = value / sum;
    }
}

// Merges the softmaxes of the block's first n_active slots, hands every block its part of the dims, and merges what
// came from all blocks into y.
template <int head_dim>
__device__ void merge_all(const decode::Args& args, const decode::Unit& u, const Merge& merge,
                          const SoftmaxState* state, uint8_t* slots, int n_active, unsigned rank, unsigned n_block,
                          uint64_t* box) {
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
    store<head_dim>(args, u, merge, rank, n_block);
}

}  // namespace fasa::cuda::best
