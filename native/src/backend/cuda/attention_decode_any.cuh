// Decode's attention for any head_dim: a warp takes positions one by one, its lanes `width` dims at a time. A unit is
// one query.
#pragma once

#include <cuda_fp16.h>

#include "backend/cuda/attention_decode.cuh"

namespace fasa::cuda::decode {

template <int width>
struct alignas(2 * width) Halves {
    uint16_t v[width];
};

// head_dim <= 32 * width * n_parts; width divides head_dim and n_dom.
template <int n_parts, int width>
class Query {
   public:
    __device__ Query(const Args& a, const Unit& u)
        : n_dom_(a.kv.n_dom), head_dim_(a.kv.head_dim), row_values_(2 * a.kv.head_dim - a.kv.n_dom), scale_(a.scale) {
        dom_ = a.kv.dom + u.row * n_dom_;
        rest_ = a.kv.rest + u.row * row_values_;
        const float* q = a.q + offset(a, u, 0);
        for_parts([&](int i, int d) { q_[i] = *reinterpret_cast<const Floats<width>*>(q + d); });
    }

    __device__ const uint16_t* row(int64_t pos) const { return rest_ + pos * row_values_; }
    __device__ int row_values() const { return row_values_; }

    // Four positions, of which the first n are to be seen, with their rows.
    __device__ void add(const int64_t (&pos)[4], const uint16_t* const (&row)[4], int n) {
        float score[4] = {};
        for (int j = 0; j < 4; ++j) {
            if (j >= n) continue;
            const uint16_t *dom = dom_ + pos[j] * n_dom_, *rest = row[j];
            for_parts([&](int i, int d) {
                const Floats<width> key = floats(d < n_dom_ ? dom + d : rest + (d - n_dom_));
                for (int k = 0; k < width; ++k) score[j] = fmaf(q_[i].v[k], key.v[k], score[j]);
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
        for (Floats<width>& y : y_) {
            for (float& v : y.v) v *= factor;
        }
        for (int j = 0; j < 4; ++j) {
            if (j >= n) continue;
            const float weight = exp2f(score[j] - base);
            const uint16_t* value = row[j] + (head_dim_ - n_dom_);
            state_.sum += weight;
            for_parts([&](int i, int d) {
                const Floats<width> v = floats(value + d);
                for (int k = 0; k < width; ++k) y_[i].v[k] = fmaf(weight, v.v[k], y_[i].v[k]);
            });
        }
    }

    __device__ void write(SoftmaxState* state, float* values) const {
        if (threadIdx.x % 32 == 0) *state = state_;
        for_parts([&](int i, int d) { *reinterpret_cast<Floats<width>*>(values + d) = y_[i]; });
    }

   private:
    static __device__ Floats<width> floats(const uint16_t* from) {
        const auto halves = *reinterpret_cast<const Halves<width>*>(from);
        Floats<width> x;
        for (int k = 0; k < width; ++k) x.v[k] = __half2float(__ushort_as_half(halves.v[k]));
        return x;
    }
    template <class Body>
    __device__ void for_parts(Body body) const {
#pragma unroll
        for (int i = 0; i < n_parts; ++i) {
            const int d = (threadIdx.x % 32 + 32 * i) * width;
            if (d < head_dim_) body(i, d);
        }
    }

    const uint16_t *dom_, *rest_;
    int n_dom_, head_dim_, row_values_;
    float scale_;
    Floats<width> q_[n_parts] = {}, y_[n_parts] = {};
    SoftmaxState state_ = {-INFINITY, 0};
};

// Leaves the rows of a tile behind that were not in the cache of rows; pos is that of lane i % n_tile.
template <int n_parts, int width>
__device__ inline void leave_rows(const CachedRows& cached, const Query<n_parts, width>& query, int pos, int first,
                                  int n) {
    const auto place = reinterpret_cast<uint64_t>(cached.place(first + threadIdx.x % n_tile));
    for (int i = 0; i < n; ++i) {
        auto* to = reinterpret_cast<uint16_t*>(__shfl_sync(all_lanes, place, i));
        const uint16_t* from = query.row(__shfl_sync(all_lanes, pos, i));
        for (int d = threadIdx.x % 32; to && d < query.row_values(); d += 32) to[d] = from[d];
    }
}

template <int n_parts, int width>
__global__ void __launch_bounds__(max_warps * 32, 1) attend_any(const Args a) {
    FASA_DYNAMIC_SHARED(shared);
    __shared__ SoftmaxState state[max_warps * max_queries];
    ptx::wait_for_previous();
    const Unit u = unit_of(a);
    const int n_block = n_busy(u), warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    if (static_cast<int>(blockIdx.x) >= n_block) return;

    const CachedRows cached = cached_rows(a, u);
    Query<n_parts, width> query(a, u);
    for (int tile = blockIdx.x * n_warps + warp; tile * n_tile < u.n_pos; tile += gridDim.x * n_warps) {
        const int first = tile * n_tile, n = min(n_tile, u.n_pos - first);
        const int mine = position(a, u, first + threadIdx.x % n_tile);
        const auto moved =
            reinterpret_cast<uint64_t>(cached.are_on() ? cached.look_up(first + threadIdx.x % n_tile, mine) : nullptr);
        for (int j = 0; j < n; j += 4) {
            int64_t pos[4];
            const uint16_t* row[4];
            for (int k = 0; k < 4; ++k) {
                pos[k] = __shfl_sync(all_lanes, mine, j + k);
                const auto* elsewhere = reinterpret_cast<const uint16_t*>(__shfl_sync(all_lanes, moved, j + k));
                row[k] = elsewhere ? elsewhere : query.row(pos[k]);
            }
            query.add(pos, row, n - j);
        }
        if (cached.are_on()) leave_rows(cached, query, mine, first, n);
    }
    ptx::start_next();
    float* values = reinterpret_cast<float*>(shared);
    query.write(state + warp * max_queries, values + warp * a.kv.head_dim);
    finish<width>(a, u, a.kv.head_dim, n_block, state, values, a.kv.head_dim, 0, shared);
}

}  // namespace fasa::cuda::decode
