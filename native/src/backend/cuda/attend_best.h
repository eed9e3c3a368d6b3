// Attention to the best-scored positions as one op. On GPUs with clusters (compute capability 9.0) one kernel chooses
// them and attends to them; what it cannot take is left to topk and AttentionDecode::selected.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/attention_decode.h"
#include "backend/cuda/topk.h"
#include "backend/views.h"
#include "base/buffer.h"

namespace fasa::cuda {

namespace best {

// Parts of a block's dynamic shared memory after cluster::Shared, in bytes from its beginning; 128-byte aligned.
struct Layout {
    uint32_t merge, mask, list, places, slots, end;
};
struct Task;

}  // namespace best

struct BestTask {
    float* y;        // [n_head][head_dim]
    const float* q;  // [n_head][head_dim], rotated, in the order of the cache
    float scale;     // of scores before the softmax
    int n_head, n_set;
    const float* scores;  // [n_set][n_ctx]
    KvView kv;
    Past past;
    Budget budget;        // keep: at most the selection's capacity
    Selection selection;  // written too
    RowCacheView cache = {};
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

    // Whether a kernel takes the task: not without clusters of at least two blocks, nor a head_dim that none was built
    // for, rows that are not whole 16-byte words, an n_ctx that is no multiple of 4, more than 8 query heads a set, or
    // a past too long for shared memory. The scores need not be there yet.
    bool takes(const BestTask& task) const { return choose(task).body != nullptr; }
    // In one launch. Throws ARGUMENT for a task that is not taken.
    void run(const BestTask& task, cudaStream_t stream) const;

   private:
    struct Choice {
        void (*body)(best::Task) = nullptr;
        best::Layout layout = {};
        unsigned n_block = 0;  // of a cluster
    };
    Choice choose(const BestTask& task) const;

    Gpu gpu_;
    Scratch scratch_;
};

}  // namespace fasa::cuda
