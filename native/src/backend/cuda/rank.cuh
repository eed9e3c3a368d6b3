// What scoring and selection share on the device: who is ranked, and into which bin a score falls.
#pragma once

#include <cstdint>

#include "backend/cuda/topk.h"

namespace fasa::cuda {

inline constexpr int n_rank_bin = 1024;
inline constexpr int n_rank_sample = 64;  // scores that tell where the bins should lie
// The bins cover 8 mean deviations below the typical score and 24 above: what is chosen lies above it, often far.
inline constexpr float bins_per_deviation = 32, bins_below = 256;
inline constexpr uint32_t full_warp = 0xffffffffu;

__device__ inline int32_t n_past(const Past& past) { return past.n_pos < 0 ? past.step->pos0 + 1 : past.n_pos; }
__device__ inline int32_t seq_of(const Past& past) { return past.n_pos < 0 ? past.step->seq : past.seq; }

// The budget of a set that has n_pos positions.
struct Ranked {
    int32_t keep, first, end, n_best;  // positions [first, end) are ranked, n_best of them chosen

    __device__ Ranked(const Budget& budget, int32_t n_pos) {
        keep = budget.keep < n_pos ? budget.keep : n_pos;
        first = budget.n_sink < keep ? budget.n_sink : keep;
        const int32_t n_recent = budget.n_recent < keep - first ? budget.n_recent : keep - first;
        end = n_pos - n_recent;
        n_best = keep - first - n_recent;
    }
    __device__ bool holds(int32_t pos) const { return pos >= first && pos < end; }
    // Of n_rank_sample positions spread evenly.
    __device__ int32_t sample(int i) const {
        return first + static_cast<int32_t>((2 * i + 1) * int64_t{end - first} / (2 * n_rank_sample));
    }
};

// Grows with the score, so that a higher bin means a higher score. NaN, as the lowest score, is in bin 0; infinity
// times a width of 0 never occurs, since per_unit > 0.
__device__ inline int bin_of(float score, const Bins& bins) {
    const float x = fmaf(score - bins.centre, bins.per_unit, bins_below);
    return static_cast<int>(fminf(fmaxf(x, 0.0f), static_cast<float>(n_rank_bin - 1)));
}

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) x += __shfl_xor_sync(full_warp, x, bit);
    return x;
}

// Bins for a sample of scores, two a lane; all lanes of all warps that have the same sample get the same bins.
__device__ inline Bins bins_for(float a, float b) {
    const float limit = 1e30f;  // what is not below in magnitude, NaN included, does not count
    const bool has_a = fabsf(a) < limit, has_b = fabsf(b) < limit;
    const float n = fmaxf(warp_sum((has_a ? 1.0f : 0.0f) + (has_b ? 1.0f : 0.0f)), 1.0f);
    const float centre = warp_sum((has_a ? a : 0.0f) + (has_b ? b : 0.0f)) / n;
    const float off = warp_sum((has_a ? fabsf(a - centre) : 0.0f) + (has_b ? fabsf(b - centre) : 0.0f)) / n;
    return {centre, bins_per_deviation / fmaxf(off, fmaxf(1e-6f * fabsf(centre), 1e-30f))};
}

// By all threads of a block, before and after it counts into its own histogram.
__device__ inline void clear_counts(uint32_t* counts) {
    for (int i = threadIdx.x; i < n_rank_bin; i += blockDim.x) counts[i] = 0;
}
__device__ inline void add_counts(uint32_t* histogram, const uint32_t* counts) {
    for (int i = threadIdx.x; i < n_rank_bin; i += blockDim.x) {
        if (counts[i]) atomicAdd(&histogram[i], counts[i]);
    }
}

}  // namespace fasa::cuda
