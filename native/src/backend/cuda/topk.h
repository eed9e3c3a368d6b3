// Exact selection of the best-scored positions: every set of scores is counted into bins, the bin is found in which the
// last chosen one lies, and only that bin's few scores are told apart.
#pragma once

#include <cstdint>

#include "backend/cuda/runtime.h"
#include "backend/views.h"
#include "base/buffer.h"

namespace fasa::cuda {

// The positions that a decode step looks back on, those from 0 on.
struct Past {
    const Step* step = nullptr;  // read when n_pos < 0: the positions up to its row, that one included
    int32_t seq = 0, n_pos = -1;
    int32_t n_pos_max = 0;  // no fewer than the true number; launches are sized by it
};

// Bins of equal width that cover a set's scores. Any values give exact selections; good ones give fast ones.
struct Bins {
    float centre, per_unit;  // of the scores; bins per unit of score
};

// Memory of one selection at a time, on the device.
struct RankScratch {
    uint32_t* histogram = nullptr;  // [n_set][n_rank_bin], zero between selections
    uint32_t* n_done = nullptr;     // [n_set] blocks that are done, zero between selections
    Bins* bins = nullptr;           // [n_set]
    uint32_t* sure = nullptr;       // [n_set][n_word] bit masks: chosen positions
    uint32_t* maybe = nullptr;      // [n_set][n_word] bit masks: positions in the bin of the last chosen one
    int32_t n_word = 0;             // a row of masks, 32 positions each

    static RankScratch take(Arena& arena, int32_t n_set, int32_t n_ctx);
    // Once, before the first selection.
    void clear(int32_t n_set, cudaStream_t stream) const;
};

// Whether selection among up to so many positions starts from counts, which token_scores can make on its way.
bool counts_first(int32_t n_pos_max);

// See Ops::topk; rows of scores are row_stride apart. One launch when the scores were counted for the same past and
// budget (or when counts are not needed), else two.
void topk(Selection& selection, const float* scores, int64_t row_stride, const Past& past, const Budget& budget,
          const RankScratch& scratch, bool counted, cudaStream_t stream);

}  // namespace fasa::cuda
