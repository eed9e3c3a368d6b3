// The state of a softmax that is not finished, and what all kernels of prefill's attention share.
#pragma once

#include <cstdint>

#include "backend/cuda/attention_prefill.h"
#include "backend/cuda/launch.cuh"
#include "backend/views.h"

namespace fasa::cuda {

// Scores and bases are in units of powers of two: a key's weight is 2^(score - base). The base lies this far below the
// highest score, so that weights become halves of up to 2^10, and fewer of the small ones are lost.
inline constexpr float base_below_max = 10.0f;

struct PrefillArgs {
    const float* q;  // [n][n_head][head_dim]
    float* values;   // [n][n_head][head_dim] for every part: y, or the states' values
    float2* stats;   // [n][n_head] for every part: base and sum
    const Step* step;
    KvView kv;
    float scale;  // of scores, log2(e) included
    int32_t n, n_head, group;
    int32_t k_first, k_end;
    RowTile tile;
    bool parts;  // block z works on chunk z alone and leaves its state; else a block goes through all
    bool resume, finish;
};

// Base and sum of the state of a row and head.
struct SoftmaxStats {
    float base, sum;
};

__device__ inline SoftmaxStats no_keys() { return {-INFINITY, 0.0f}; }

// What to subtract from scores; any number will do where all of them are -inf.
__device__ inline float subtrahend(float base) { return base == -INFINITY ? 0.0f : base; }

// Merges two states: what their sums and values are multiplied with. Values are then merged by merge_values, wherever
// it is done, for the same bits.
struct MergeWeights {
    float before, now;
};

__device__ inline MergeWeights merge_stats(SoftmaxStats before, SoftmaxStats& now) {
    const float base = fmaxf(before.base, now.base), off = subtrahend(base);
    const MergeWeights weights = {exp2f(before.base - off), exp2f(now.base - off)};
    now = {base, fmaf(now.sum, weights.now, before.sum * weights.before)};
    return weights;
}

__device__ inline float merge_values(MergeWeights weights, float before, float now) {
    return fmaf(now, weights.now, before * weights.before);
}

// What values are multiplied with in the end; infinite where no key was seen, which makes NaN of their zeros.
__device__ inline float inverse_of(float sum) { return 1.0f / sum; }

// The rows of a block: pairs (position of the batch, head of the KV head's group), heads fastest, counted over the
// batch. Row r is at place r / group * n_head + head0 + r % group of all arrays [n][n_head].
struct PrefillRows {
    int32_t first, end;  // of the batch's n * group rows
    int32_t pos0, group, n_head, head0;

    __device__ int64_t place(int32_t row) const { return int64_t{row / group} * n_head + head0 + row % group; }
    // Positions that a row sees.
    __device__ int32_t n_visible(int32_t row) const { return pos0 + row / group + 1; }
};

// Rows of this block, which takes up to n_rows; later rows see more, so the first blocks take the last ones.
__device__ inline PrefillRows rows_of_block(const PrefillArgs& args, int n_rows) {
    const int32_t first = static_cast<int32_t>(gridDim.x - 1 - blockIdx.x) * n_rows;
    return {first,       min(first + n_rows, args.n * args.group),     args.step->pos0, args.group,
            args.n_head, static_cast<int32_t>(blockIdx.y) * args.group};
}

// The positions [first, end) that a block goes through.
struct PrefillKeys {
    int32_t first, end;
};

__device__ inline PrefillKeys keys_of_block(const PrefillArgs& args, const PrefillRows& rows) {
    const int32_t first = args.k_first + (args.parts ? static_cast<int32_t>(blockIdx.z) * prefill_chunk : 0);
    const int32_t end = min(args.k_end, rows.n_visible(rows.end - 1));
    return {first, args.parts ? min(end, first + prefill_chunk) : end};
}

// Nothing to add to the state, which may stay as it is.
__device__ inline bool nothing_to_do(const PrefillArgs& args, const PrefillKeys& keys) {
    return keys.first >= keys.end && (args.parts || (args.resume && !args.finish));
}

// Where this block's states lie.
__device__ inline int64_t part_offset(const PrefillArgs& args) {
    return args.parts ? int64_t{blockIdx.z} * args.n * args.n_head : 0;
}

}  // namespace fasa::cuda
