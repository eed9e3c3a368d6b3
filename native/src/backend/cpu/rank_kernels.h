// The inner loops of ranking positions by scores, per instruction set: for selection, and for calibration, where the
// same positions are ranked many times over, each time by other scores, to learn how much weight the best of them hold.
#pragma once

#include <cstdint>

#include "base/cpu.h"

namespace fasa::cpu {

struct Candidate {
    float score;
    int32_t pos;
};

// The order of all selections: the lower position first among equals.
inline bool better(const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.pos < b.pos;
}

// Of n >= 1 scores.
struct ScoreRange {
    float min, max, sum, sum_squares;
};

struct RankKernels {
    // out[j] = base[j] + q[0] * first[j] + q[1] * second[j] over n positions: one chunk's dims. base nullptr: zeros;
    // second nullptr: a chunk of one dim. out may be base.
    ScoreRange (*add_scores)(float* out, const float* base, const float* q, const float* first, const float* second,
                             int n);
    // sum_squares is not finite when a score is NaN or infinite.
    ScoreRange (*range)(const float* scores, int n);
    // Scores above the threshold.
    int (*count_above)(const float* scores, int n, float threshold);
    // Sum of the weights whose scores are above the threshold.
    float (*weight_above)(const float* scores, const float* weights, int n, float threshold);
    // Appends the scores in (low, high] with their positions and returns how many. out has room for n.
    int (*append_between)(const float* scores, int n, float low, float high, Candidate* out);
};

const RankKernels& rank_kernels(Isa isa);

namespace scalar {
extern const RankKernels rank;
}
namespace avx2 {
extern const RankKernels rank;
}
namespace avx512 {
extern const RankKernels rank;
}

// Two thresholds between which the k-th best score lies: at least k scores are above low, at most k above high.
struct Bracket {
    float low, high;
    int n_low, n_high;  // scores above them
};

// A bracket with few scores between its thresholds, or only equal ones. 1 <= k <= n; scores are finite, range is
// theirs.
Bracket bracket_best(const RankKernels& kernels, const float* scores, int n, int k, const ScoreRange& range);

// Weight of the k best of n scores, the lower position first among equals. 1 <= k <= n; scores and weights are finite;
// range is that of the scores; candidates has room for n.
double top_weight(const RankKernels& kernels, const float* scores, const float* weights, int n, int k,
                  const ScoreRange& range, Candidate* candidates);

}  // namespace fasa::cpu
