// Decode's sparse attention as one op: scores by the dominant plane, the best positions, attention to them. On GPUs
// with clusters (compute capability 9.0) one kernel does all of it; what it cannot take is left to token_scores, topk
// and AttentionDecode::selected.
#pragma once

#include <cstddef>

#include "backend/cuda/attention_decode.h"
#include "backend/cuda/topk.h"
#include "backend/views.h"
#include "base/buffer.h"

namespace fasa::cuda {

struct BestTask {
    float* y;            // [n_head][head_dim]
    const float* q;      // [n_head][head_dim], rotated, in the order of the cache
    float scale;         // of scores before the softmax
    SetQueries queries;  // that rank
    KvView kv;
    Past past;
    Budget budget;        // keep: at most the selection's capacity
    Selection selection;  // written too
};

class AttendBest {
   public:
    struct Gpu {
        int n_sm;
        size_t shared_bytes;  // a block may have at most, when it asks for it
    };
    struct Scratch {
        unsigned* n_slow;  // selections so far that did not go by the counts of bins; for tests and measurements

        static Scratch take(Arena& arena);
    };

    // Raises the kernels' limits on the current device. The scratch must be zero before the first launch.
    AttendBest(const Gpu& gpu, const Scratch& scratch);

    // Does the task in one launch and returns true; or returns false when no kernel takes it: no clusters, a head_dim
    // or number of dominant dims that it was not built for, rows that are not whole 16-byte words, more than 8 query
    // heads a set, masked queries, a past too long for shared memory.
    bool run(const BestTask& task, cudaStream_t stream) const;

   private:
    Gpu gpu_;
    Scratch scratch_;
};

}  // namespace fasa::cuda
