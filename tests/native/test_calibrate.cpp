// The inner loops of calibration: all instruction sets agree, and the weight of the best equals sorting.
#include <algorithm>
#include <numeric>
#include <random>

#include "backend/cpu/rank_kernels.h"
#include "check.h"

using namespace fasa;
using namespace fasa::cpu;

namespace {

std::vector<const RankKernels*> all_kernels() {
    std::vector<const RankKernels*> kernels = {&rank_kernels(Isa::scalar)};
    const Isa isa = cpu_info().isa;
    if (isa != Isa::scalar) kernels.push_back(&rank_kernels(Isa::avx2));
    if (isa == Isa::avx512) kernels.push_back(&rank_kernels(Isa::avx512));
    return kernels;
}

std::vector<float> normal(size_t n, uint32_t seed, float rounded_to = 0) {
    std::mt19937 random(seed);
    std::normal_distribution<float> distribution;
    std::vector<float> values(n);
    for (float& v : values) {
        v = distribution(random);
        if (rounded_to > 0) v = std::round(v / rounded_to) * rounded_to;
    }
    return values;
}

ScoreRange range_of(const RankKernels& kernels, std::vector<float>& scores) {
    const float one[2] = {1, 0};
    return kernels.add_scores(scores.data(), nullptr, one, scores.data(), nullptr, static_cast<int>(scores.size()));
}

double sorted_weight(const std::vector<float>& scores, const std::vector<float>& weights, int k) {
    std::vector<int> ranking(scores.size());
    std::iota(ranking.begin(), ranking.end(), 0);
    std::stable_sort(ranking.begin(), ranking.end(), [&](int a, int b) { return scores[a] > scores[b]; });
    double total = 0;
    for (int i = 0; i < k; ++i) total += static_cast<double>(weights[ranking[i]]);
    return total;
}

void check_weights(std::vector<float> scores) {
    const int n = static_cast<int>(scores.size());
    std::vector<float> weights = normal(scores.size(), 99);
    for (float& w : weights) w = std::fabs(w);
    std::vector<Candidate> candidates(scores.size());
    for (const RankKernels* kernels : all_kernels()) {
        const ScoreRange range = range_of(*kernels, scores);
        for (const int k : {1, 2, 63, 64, 65, 256, n - 1, n}) {
            if (k < 1 || k > n) continue;
            const double found = top_weight(*kernels, scores.data(), weights.data(), n, k, range, candidates.data());
            CHECK_NEAR(found, sorted_weight(scores, weights, k), 1e-5 * (1 + k));
        }
    }
}

}  // namespace

TEST(weight_of_the_best_equals_sorting) {
    for (const size_t n : {size_t{1}, size_t{2}, size_t{15}, size_t{17}, size_t{130}, size_t{1000}, size_t{4099}}) {
        check_weights(normal(n, 1));
        check_weights(normal(n, 2, 0.5f));           // many ties
        check_weights(std::vector<float>(n, 3.0f));  // nothing but ties
        std::vector<float> one_high(n, -1.0f);
        one_high[n / 2] = 1e20f;
        check_weights(one_high);
        std::vector<float> wide = normal(n, 3);
        for (float& v : wide) v = std::copysign(std::exp(20 * std::fabs(v)), v);  // many magnitudes
        check_weights(wide);
    }
}

TEST(instruction_sets_rank_alike) {
    for (const int n : {1, 7, 8, 16, 31, 32, 33, 500, 513}) {
        const size_t size = static_cast<size_t>(n);
        const std::vector<float> base = normal(size, 4), first = normal(size, 5), second = normal(size, 6);
        const float q[2] = {0.7f, -1.3f};
        for (const bool with_base : {false, true}) {
            for (const bool with_second : {false, true}) {
                for (const RankKernels* kernels : all_kernels()) {
                    std::vector<float> scores(size + 1, 123.0f);
                    const ScoreRange range =
                        kernels->add_scores(scores.data(), with_base ? base.data() : nullptr, q, first.data(),
                                            with_second ? second.data() : nullptr, n);
                    double sum = 0;
                    for (size_t j = 0; j < size; ++j) {
                        const double expected =
                            static_cast<double>(with_base ? base[j] : 0.0f) +
                            static_cast<double>(q[0]) * static_cast<double>(first[j]) +
                            (with_second ? static_cast<double>(q[1]) * static_cast<double>(second[j]) : 0.0);
                        CHECK_NEAR(static_cast<double>(scores[j]), expected, 1e-5);
                        sum += expected;
                    }
                    CHECK(scores[size] == 123.0f);
                    CHECK(range.min == *std::min_element(scores.begin(), scores.end() - 1));
                    CHECK(range.max == *std::max_element(scores.begin(), scores.end() - 1));
                    CHECK_NEAR(static_cast<double>(range.sum), sum, 1e-3);
                    const int above = static_cast<int>(
                        std::count_if(scores.begin(), scores.end() - 1, [](float s) { return s > 0.25f; }));
                    CHECK(kernels->count_above(scores.data(), n, 0.25f) == above);
                    std::vector<Candidate> between(size);
                    const int n_between = kernels->append_between(scores.data(), n, -0.5f, 0.25f, between.data());
                    const int expected = static_cast<int>(std::count_if(
                        scores.begin(), scores.end() - 1, [](float s) { return s > -0.5f && s <= 0.25f; }));
                    CHECK(n_between == expected);
                    for (int i = 0; i < n_between; ++i) CHECK(between[i].score == scores[between[i].pos]);
                }
            }
        }
    }
}
