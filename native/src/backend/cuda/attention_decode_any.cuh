// Decode's attention for any even head_dim: a warp takes positions one by one, its lanes pairs of dims. A unit is one
// query.
#pragma once

#include <cuda_fp16.h>

#include "backend/cuda/attention_decode.cuh"

namespace fasa::cuda::decode {

// head_dim <= 64 * n_pairs
template <int n_pairs>
class Query {
   public:
    __device__ Query(const Args& a, const Unit& u)
        : n_dom_(a.kv.n_dom / 2), n_key_(a.kv.head_dim / 2), n_rest_(a.kv.head_dim - n_dom_), scale_(a.scale) {
        dom_ = reinterpret_cast<const __half2*>(a.kv.dom) + u.row * n_dom_;
        rest_ = reinterpret_cast<const __half2*>(a.kv.rest) + u.row * n_rest_;
        const auto* q = reinterpret_cast<const float2*>(a.q + offset(a, u, 0));
        for_pairs([&](int i, int pair) { q_[i] = q[pair]; });
    }

    __device__ const __half2* row(int64_t pos) const { return rest_ + pos * n_rest_; }
    __device__ int row_pairs() const { return n_rest_; }

    // Four positions, of which the first n are to be seen, with their rows.
    __device__ void add(const int64_t (&pos)[4], const __half2* const (&row)[4], int n) {
        float score[4] = {};
        for (int j = 0; j < 4; ++j) {
            if (j >= n) continue;
            const __half2 *dom = dom_ + pos[j] * n_dom_, *rest = row[j];
            for_pairs([&](int i, int pair) {
                const float2 key = __half22float2(pair < n_dom_ ? dom[pair] : rest[pair - n_dom_]);
                score[j] = fmaf(q_[i].x, key.x, fmaf(q_[i].y, key.y, score[j]));
            });
        }
        for (int step = 16; step > 0; step /= 2) {
            for (float& s : score) s += __shfl_xor_sync(all_lanes, s, step);
        }
        float top = state_.top;
        for (int j = 0; j < 4; ++j) {
            score[j] = j < n ? score[j] * scale_ : -INFINITY;
            top = fmaxf(top, score[j]);
        }
        const float base = finite_top(top), factor = exp2f(state_.top - base);
        state_ = {top, state_.sum * factor};
        for (float2& y : y_) y = {y.x * factor, y.y * factor};
        for (int j = 0; j < 4; ++j) {
            if (j >= n) continue;
            const float weight = exp2f(score[j] - base);
            const __half2* value = row[j] + (n_key_ - n_dom_);
            state_.sum += weight;
            for_pairs([&](int i, int pair) {
                const float2 v = __half22float2(value[pair]);
                y_[i] = {fmaf(weight, v.x, y_[i].x), fmaf(weight, v.y, y_[i].y)};
            });
        }
    }

    __device__ void write(SoftmaxState* state, float* values) const {
        if (threadIdx.x % 32 == 0) *state = state_;
        for_pairs([&](int i, int pair) { reinterpret_cast<float2*>(values)[pair] = y_[i]; });
    }

   private:
    template <class Body>
    __device__ void for_pairs(Body body) const {
#pragma unroll
        for (int i = 0; i < n_pairs; ++i) {
            const int pair = threadIdx.x % 32 + 32 * i;
            if (pair < n_key_) body(i, pair);
        }
    }

    const __half2 *dom_, *rest_;
    int n_dom_, n_key_, n_rest_;  // pairs in a row's dominant dims, in a key, in a row of the other plane
    float scale_;
    float2 q_[n_pairs] = {}, y_[n_pairs] = {};
    SoftmaxState state_ = {-INFINITY, 0};
};

// Leaves the rows of a tile behind that were not in the cache of rows; pos is that of lane i % n_tile.
template <int n_pairs>
__device__ inline void leave_rows(const CachedRows& cached, const Query<n_pairs>& query, int pos, int first, int n) {
    const auto place = reinterpret_cast<uint64_t>(cached.place(first + threadIdx.x % n_tile));
    for (int i = 0; i < n; ++i) {
        auto* to = reinterpret_cast<__half2*>(__shfl_sync(all_lanes, place, i));
        const __half2* from = query.row(__shfl_sync(all_lanes, pos, i));
        for (int pair = threadIdx.x % 32; to && pair < query.row_pairs(); pair += 32) to[pair] = from[pair];
    }
}

template <int n_pairs>
__global__ void __launch_bounds__(max_warps * 32, 1) attend_any(const Args a) {
    FASA_DYNAMIC_SHARED(shared);
    __shared__ SoftmaxState state[max_warps * max_queries];
    ptx::wait_for_previous();
    const Unit u = unit_of(a);
    const int n_block = n_busy(u), warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    if (static_cast<int>(blockIdx.x) >= n_block) return;

    const CachedRows cached = cached_rows(a, u);
    Query<n_pairs> query(a, u);
    for (int tile = blockIdx.x * n_warps + warp; tile * n_tile < u.n_pos; tile += gridDim.x * n_warps) {
        const int first = tile * n_tile, n = min(n_tile, u.n_pos - first);
        const int mine = position(a, u, first + threadIdx.x % n_tile);
        const auto moved =
            reinterpret_cast<uint64_t>(cached.are_on() ? cached.look_up(first + threadIdx.x % n_tile, mine) : nullptr);
        for (int j = 0; j < n; j += 4) {
            int64_t pos[4];
            const __half2* row[4];
            for (int k = 0; k < 4; ++k) {
                pos[k] = __shfl_sync(all_lanes, mine, j + k);
                const auto* elsewhere = reinterpret_cast<const __half2*>(__shfl_sync(all_lanes, moved, j + k));
                row[k] = elsewhere ? elsewhere : query.row(pos[k]);
            }
            query.add(pos, row, n - j);
        }
        if (cached.are_on()) leave_rows(cached, query, mine, first, n);
    }
    ptx::start_next();
    float* values = reinterpret_cast<float*>(shared);
    query.write(state + warp * max_queries, values + warp * a.kv.head_dim);
    finish<2>(a, u, a.kv.head_dim, n_block, state, values, a.kv.head_dim, 0, shared);
}

}  // namespace fasa::cuda::decode
