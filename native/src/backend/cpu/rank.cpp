#include <algorithm>
#include <cmath>

#include "backend/cpu/rank_kernels.h"

namespace fasa::cpu {
namespace {

constexpr int sort_limit = 64;  // scores between the two thresholds that are told apart by sorting

// Where a normal distribution of these moments has the share k / n above it.
float normal_quantile(const ScoreRange& range, int n, int k) {
    const float mean = range.sum / static_cast<float>(n);
    const float variance = std::max(0.0f, range.sum_squares / static_cast<float>(n) - mean * mean);
    const float share = static_cast<float>(std::min(k, n - k)) / static_cast<float>(n);
    const float t = std::sqrt(-2 * std::log(std::max(share, 1e-9f)));
    const float z = t - (2.30753f + 0.27061f * t) / (1 + t * (0.99229f + 0.04481f * t));  // Hastings
    return mean + (2 * k <= n ? z : -z) * std::sqrt(variance);
}

float middle(const Bracket& b) { return b.low + (b.high - b.low) / 2; }

bool inside(const Bracket& b, float x) { return b.low < x && x < b.high; }

// Where counts that fall exponentially would reach k.
float interpolate(const Bracket& b, int k) {
    if (b.n_high == 0) return middle(b);
    const float total = std::log(static_cast<float>(b.n_low) / static_cast<float>(b.n_high));
    return b.low + (b.high - b.low) * (std::log(static_cast<float>(b.n_low) / static_cast<float>(k)) / total);
}

}  // namespace

const RankKernels& rank_kernels([[maybe_unused]] Isa isa) {
#ifdef FASA_X86
    if (isa == Isa::avx512) return avx512::rank;
    if (isa == Isa::avx2) return avx2::rank;
#endif
    return scalar::rank;
}

// Counting costs a comparison a score, so a handful of counts finds thresholds with few scores between them. Every
// third guess halves the bracket, which bounds the number of counts.
Bracket bracket_best(const RankKernels& kernels, const float* scores, int n, int k, const ScoreRange& range) {
    Bracket b{std::nextafter(range.min, -INFINITY), range.max, n, 0};
    float guess = normal_quantile(range, n, k);
    for (int i = 0; b.n_low - b.n_high > sort_limit; ++i) {
        if (!inside(b, guess)) guess = middle(b);
        if (!inside(b, guess)) break;  // neighbours: all that is left are equals
        const int count = kernels.count_above(scores, n, guess);
        if (count >= k) b.low = guess, b.n_low = count;
        if (count <= k) b.high = guess, b.n_high = count;
        guess = i % 3 == 2 ? middle(b) : interpolate(b, k);
    }
    return b;
}

double top_weight(const RankKernels& kernels, const float* scores, const float* weights, int n, int k,
                  const ScoreRange& range, Candidate* candidates) {
    const Bracket b = bracket_best(kernels, scores, n, k, range);
    double total = static_cast<double>(kernels.weight_above(scores, weights, n, b.high));
    const int n_left = k - b.n_high;
    if (n_left == 0) return total;
    const int n_between = kernels.append_between(scores, n, b.low, b.high, candidates);
    if (n_left < n_between) std::nth_element(candidates, candidates + n_left, candidates + n_between, better);
    std::sort(candidates, candidates + n_left, [](const Candidate& a, const Candidate& b2) { return a.pos < b2.pos; });
    for (int i = 0; i < n_left; ++i) total += static_cast<double>(weights[candidates[i].pos]);
    return total;
}

}  // namespace fasa::cpu
