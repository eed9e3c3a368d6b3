// Attention of decode: few query rows over a long cache, bound by the bytes of the cache. Tensor cores for head_dim 64,
// 80, 96, 128 and 256, any other head_dim by plain sums.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/row_cache.h"
#include "backend/cuda/runtime.h"
#include "backend/views.h"
#include "base/buffer.h"

namespace fasa::cuda {

// A softmax that is not finished, of scores in units of log2: sum of 2^(score - top) over some positions. Their values
// are summed with the same weights, beside it.
struct alignas(8) SoftmaxState {
    float top, sum;
};

// One launch an op: the cache is split among as many blocks as run at once, each leaves the softmax states of its share
// in scratch, and the last one of a head merges them, always in the same order: the same bits on every run. Launches
// can be captured in a graph; the step's lengths are read on the device. Calls of one object must follow one another on
// the device, since they share its scratch.
//
// Rows of a batch share the reading of the cache. So a cached value that is infinite or NaN, which a row sees as it
// must, can make NaN of the batch's earlier rows too.
class AttentionDecode {
   public:
    struct Gpu {
        int n_sm;
        size_t shared_bytes;  // a block may have at most, when it asks for it
    };
    struct Scratch {
        float* values;        // [n_sm][16][head_dim]
        SoftmaxState* state;  // [n_sm][16]
        unsigned* counter;    // [n_sm], zero before the first launch; every launch leaves them zero

        static Scratch take(Arena& arena, int n_sm, int head_dim);
    };

    // Raises the kernels' limits of shared memory on the current device.
    AttentionDecode(const Gpu& gpu, const Scratch& scratch);

    // y, q [n][n_head][head_dim], q rotated and in the order of the cache; row i sees positions 0 .. step->pos0 + i of
    // sequence step->seq. Few rows: more than 16 queries a KV head read the cache more than once. step->pos0 + n should
    // be at most n_pos_max, which chooses the number of blocks; beyond it results hold, only slower. While the kernel
    // before still runs, this one reads *step and the cache below pos0 (`overlap` of Launch): neither may be among what
    // that one writes. cache: of the layer's rows, for a single row of a batch.
    void dense(float* y, const float* q, int n_head, float scale, const KvView& kv, const Step* step, int n,
               int n_pos_max, cudaStream_t stream, const RowCacheView& cache = {}) const;
    // One row over the positions of a selection in device memory, whose sets are the KV heads or the query heads.
    // n_pos_max as above, for the longest set. dom and rest of kv may lie in mapped host memory.
    void selected(float* y, const float* q, int n_head, float scale, const KvView& kv, const Step* step,
                  const Selection& selection, int n_pos_max, cudaStream_t stream, const RowCacheView& cache = {}) const;

   private:
    struct Work;
    void start(const Work& work) const;

    Gpu gpu_;
    Scratch scratch_;
};

}  // namespace fasa::cuda
