// Exact selection of the best-scored positions.
#pragma once

#include "backend/backend.h"
#include "backend/cpu/rank_kernels.h"
#include "base/team.h"

namespace fasa::cpu {

class TopK {
   public:
    TopK(Team& team, const OpsLimits& limits);

    // See Ops::topk. Rows of scores are n_ctx apart.
    void run(const float* scores, int32_t n_pos, int32_t keep, int32_t n_sink, int32_t n_recent, Selection& selection);

    static size_t scratch_bytes(const OpsLimits& limits, int n_threads);

   private:
    // Writes the positions of the k best of n scores, ascending, counted from first.
    void best(const float* scores, int32_t n, int32_t k, int32_t first, int32_t* positions, int thread);
    // Worst of the k best of n candidates, which are reordered.
    static Candidate cut(Candidate* candidates, int32_t n, int32_t k);

    const RankKernels& kernels_;
    Team& team_;
    int32_t n_ctx_;
    Buffer memory_;  // [n_threads][2][n_ctx] candidates
};

}  // namespace fasa::cpu
