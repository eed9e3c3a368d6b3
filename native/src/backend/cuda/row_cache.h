// A cache on the device of rows of the KV cache that lie in host memory (FASA-M): those that decode steps chose of
// late, of every layer and KV head. Attention looks its rows up, reads those that are there from the device, and leaves
// copies of the others behind as they pass; once a step, keep() puts these where the longest unused ones were. So what
// a step finds depends on the steps before alone, no step asks the host, and rows are the same from either place.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/runtime.h"
#include "base/buffer.h"

namespace fasa::cuda {

// A row may lie in this many places: those of one set, which follows from its position.
inline constexpr int32_t n_row_way = 16;

// Of one layer, on the device.
struct RowCacheView {
    uint16_t* rows = nullptr;  // [n_head_kv][n_row][row_values]; nullptr: there is no cache
    uint32_t* tag = nullptr;   // [n_head_kv][n_row]: whose row it is (tag_of), 0: nobody's
    uint32_t* used = nullptr;  // [n_head_kv][n_row]: the step that looked for it last
    uint32_t* now = nullptr;   // [n_head_kv]: the number of this step, from 1 on
    // Rows that this step found missing, of every KV head n_staged at most; its lists share the room evenly.
    uint16_t* staged = nullptr;            // [n_head_kv][n_staged][row_values]
    uint32_t* staged_tag = nullptr;        // [n_head_kv][n_staged], 0: not missing
    unsigned long long* counts = nullptr;  // [n_head_kv][2]: rows found and not found so far
    int32_t n_row = 0, n_staged = 0;       // n_row: a multiple of n_row_way
};

class RowCache {
   public:
    // Of all layers, zeroed. An empty arena measures.
    static RowCacheView take(Arena& arena, const OpsLimits& limits);

    // memory: as of take. Throws ARGUMENT when positions are too many to be told apart.
    RowCache(const OpsLimits& limits, const RowCacheView& memory, cudaStream_t stream);

    RowCacheView layer(int32_t host_layer) const;
    // Takes in what the layers of a step staged, once all of them are done.
    void keep(cudaStream_t stream) const;
    // Rows of positions from first_pos on of a sequence may have changed.
    void forget(int32_t seq, int32_t first_pos, cudaStream_t stream) const;
    // Of all steps so far; waits for the stream.
    RowCounts counts(cudaStream_t stream) const;

   private:
    RowCacheView all_;
    int32_t n_layer_, n_head_kv_, n_ctx_, row_values_;
};

}  // namespace fasa::cuda
