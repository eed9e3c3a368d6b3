// What the kernels that score positions share: their task, and how they count scores.
#pragma once

#include <cstdint>

#include "backend/cuda/dominant_rows.cuh"
#include "backend/cuda/keys.cuh"
#include "backend/cuda/rank.cuh"
#include "backend/cuda/scores.h"

namespace fasa::cuda {

struct ScoreTask {
    float* scores;
    int64_t row_stride;
    SetQueries queries;
    KvView kv;
    Past past;
    bool whole_key;
    bool counted;
    CountFor count;
};

// A kernel for a task, a set a row of blocks.
struct ScoreKernel {
    void (*kernel)(ScoreTask);
    int n_batch;          // rows that a warp takes at a time
    int n_resident;       // blocks of a multiprocessor: their loads under way cover the memory's latency
    size_t shared_bytes;  // besides what the kernel has anyway
};

namespace scoring {

inline constexpr int n_warp = 8, n_thread = 32 * n_warp;
// All rows but the last were written before this step. What is read earlier than what the kernels before wrote keeps
// this distance from the last row, 64 of whose scales are a line, so that its neighbours do not come into the cache.
inline constexpr int old_distance = 64;

__device__ inline Keys keys_of(const ScoreTask& task, int set) {
    return Keys(task.kv, seq_of(task.past), set, task.queries.n_set);
}

// Counts scores of ranked positions into the block's bins.
struct Counter {
    uint32_t* counts;
    int32_t first;
    uint32_t n;  // positions [first, first + n) count
    Bins bins;

    __device__ Counter(const ScoreTask& task, const Ranked& ranked, const Bins& its_bins, uint32_t* its_counts)
        : counts(its_counts),
          first(ranked.first),
          n(task.counted && ranked.end > ranked.first ? ranked.end - ranked.first : 0),
          bins(its_bins) {}

    __device__ void count(int32_t pos, float score) const {
        if (static_cast<uint32_t>(pos - first) < n) atomicAdd(&counts[bin_of(score, bins)], 1u);
    }
};

// By all threads, when all scores of the block are counted.
__device__ inline void finish_counts(const ScoreTask& task, const uint32_t* counts) {
    if (!task.counted) return;
    __syncthreads();
    add_counts(task.count.scratch.histogram + int64_t{blockIdx.y} * n_rank_bin, counts);
}

}  // namespace scoring
}  // namespace fasa::cuda
