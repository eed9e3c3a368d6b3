#include "backend/cpu/topk.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fasa::cpu {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// NaN counts as the lowest score.
float rank_of(float score) { return std::isnan(score) ? -infinity : score; }

}  // namespace

size_t TopK::scratch_bytes(const OpsLimits& limits, int n_threads) {
    return static_cast<size_t>(n_threads) * 2 * static_cast<size_t>(limits.n_ctx) * sizeof(Candidate);
}

TopK::TopK(Team& team, const OpsLimits& limits)
    : kernels_(rank_kernels(cpu_info().isa)),
      team_(team),
      n_ctx_(limits.n_ctx),
      memory_(scratch_bytes(limits, team.n_threads()), "selection scratch") {}

Candidate TopK::cut(Candidate* candidates, int32_t n, int32_t k) {
    std::nth_element(candidates, candidates + (k - 1), candidates + n, better);
    return candidates[k - 1];
}

// A handful of counts brackets the k-th best score, one comparison a score each; what lies above the bracket is chosen,
// and only the few scores inside are told apart. Scores that are not finite cannot be bracketed and are sorted.
void TopK::best(const float* scores, int32_t n, int32_t k, int32_t first, int32_t* positions, int thread) {
    Candidate* candidates = static_cast<Candidate*>(memory_.data()) + size_t{2} * thread * n_ctx_;
    Candidate* undecided = candidates + n_ctx_;
    const ScoreRange range = kernels_.range(scores, n);
    int32_t n_candidates = n, n_above = 0;
    float above = infinity;
    if (std::isfinite(range.sum_squares)) {
        const Bracket bracket = bracket_best(kernels_, scores, n, k, range);
        n_candidates = kernels_.append_between(scores, n, bracket.low, infinity, candidates);
        n_above = bracket.n_high;
        above = bracket.high;
    } else {
        for (int32_t j = 0; j < n; ++j) candidates[j] = {rank_of(scores[j]), j};
        above = std::numeric_limits<float>::quiet_NaN();  // nothing is above it
    }
    Candidate last{-infinity, n};
    if (n_above < k) {
        int32_t n_undecided = 0;
        for (int32_t i = 0; i < n_candidates; ++i) {
            if (!(candidates[i].score > above)) undecided[n_undecided++] = candidates[i];
        }
        last = cut(undecided, n_undecided, k - n_above);
    }
    for (int32_t i = 0; i < n_candidates; ++i) {
        const bool chosen = candidates[i].score > above || (n_above < k && !better(last, candidates[i]));
        if (chosen) *positions++ = first + candidates[i].pos;
    }
}

void TopK::run(const float* scores, int32_t n_pos, int32_t keep, int32_t n_sink, int32_t n_recent,
               Selection& selection) {
    keep = std::min({keep, n_pos, selection.capacity});
    n_sink = std::min(n_sink, keep);
    n_recent = std::min(n_recent, keep - n_sink);
    const int32_t n_best = keep - n_sink - n_recent, n_scored = n_pos - n_sink - n_recent;
    team_.run(selection.n_set, [&](int64_t set, int thread) {
        int32_t* list = selection.list(static_cast<int32_t>(set));
        for (int32_t i = 0; i < n_sink; ++i) list[i] = i;
        if (n_best > 0) best(scores + set * n_ctx_ + n_sink, n_scored, n_best, n_sink, list + n_sink, thread);
        for (int32_t i = 0; i < n_recent; ++i) list[keep - n_recent + i] = n_pos - n_recent + i;
        selection.count[set] = keep;
    });
}

}  // namespace fasa::cpu
