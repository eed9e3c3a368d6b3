// The reference of the inner loops of ranking.
#include <algorithm>

#include "backend/cpu/rank_kernels.h"

namespace fasa::cpu::scalar {
namespace {

ScoreRange add_scores(float* out, const float* base, const float* q, const float* first, const float* second, int n) {
    ScoreRange range{};
    for (int j = 0; j < n; ++j) {
        float score = (base ? base[j] : 0.0f) + q[0] * first[j];
        if (second) score += q[1] * second[j];
        out[j] = score;
        range.min = j == 0 ? score : std::min(range.min, score);
        range.max = j == 0 ? score : std::max(range.max, score);
        range.sum += score;
        range.sum_squares += score * score;
    }
    return range;
}

ScoreRange range(const float* scores, int n) {
    ScoreRange all{scores[0], scores[0], 0, 0};
    for (int j = 0; j < n; ++j) {
        all.min = std::min(all.min, scores[j]);
        all.max = std::max(all.max, scores[j]);
        all.sum += scores[j];
        all.sum_squares += scores[j] * scores[j];
    }
    return all;
}

int count_above(const float* scores, int n, float threshold) {
    int count = 0;
    for (int j = 0; j < n; ++j) count += scores[j] > threshold;
    return count;
}

float weight_above(const float* scores, const float* weights, int n, float threshold) {
    float sum = 0;
    for (int j = 0; j < n; ++j) sum += scores[j] > threshold ? weights[j] : 0.0f;
    return sum;
}

int append_between(const float* scores, int n, float low, float high, Candidate* out) {
    int count = 0;
    for (int j = 0; j < n; ++j) {
        if (scores[j] > low && scores[j] <= high) out[count++] = {scores[j], j};
    }
    return count;
}

}  // namespace

const RankKernels rank = {add_scores, range, count_above, weight_above, append_between};

}  // namespace fasa::cpu::scalar
