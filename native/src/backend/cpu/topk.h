// Exact selection of the best-scored positions.
#pragma once

#include "backend/backend.h"
#include "base/cpu.h"
#include "base/team.h"

namespace fasa::cpu {

struct Candidate {
    float score;
    int32_t pos;
};

// The order of all selections: the lower position first among equals.
inline bool better(const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.pos < b.pos;
}

// Appends the entries of scores[0 .. n) above the threshold, as positions first + j, and returns how many. out has room
// for n + 16.
using AppendAbove = int (*)(const float* scores, int n, float threshold, int32_t first, Candidate* out);

AppendAbove append_above(Isa isa);

namespace scalar {
extern const AppendAbove append_above;
}
namespace avx2 {
extern const AppendAbove append_above;
}
namespace avx512 {
extern const AppendAbove append_above;
}

class TopK {
   public:
    TopK(Team& team, const OpsLimits& limits);

    // See Ops::topk. Rows of scores are n_ctx apart.
    void run(const float* scores, int32_t n_pos, int32_t keep, int32_t n_sink, int32_t n_recent, Selection& selection);

    static size_t scratch_bytes(const OpsLimits& limits, int n_threads);

   private:
    // Best k of scores[first .. last), unordered, at the front of the thread's candidates.
    Candidate* best(const float* scores, int32_t first, int32_t last, int32_t k, int thread);

    AppendAbove append_above_;
    Team& team_;
    int32_t n_ctx_;
    Buffer memory_;  // [n_threads][capacity] candidates
};

}  // namespace fasa::cpu
