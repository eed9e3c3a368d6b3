// Sampling: greedy, the filters, penalties and biases, determinism, and the shape of the distribution.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "check.h"
#include "runtime/sampler.h"

using fasa::Sampler;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

fasa_sampler_params greedy() { return {}; }

fasa_sampler_params random_draws(float temperature = 1.0f) {
    fasa_sampler_params p = {};
    p.temperature = temperature;
    p.seed = 7;
    return p;
}

std::map<int32_t, int> draws(const fasa_sampler_params& params, const std::vector<float>& logits, int n) {
    Sampler sampler(params);
    std::map<int32_t, int> count;
    for (int i = 0; i < n; ++i) ++count[sampler.sample(logits, {})];
    return count;
}

}  // namespace

TEST(sampler_greedy_takes_the_first_of_the_best) {
    Sampler sampler(greedy());
    CHECK(sampler.sample(std::vector<float>{1, 3, 2, 3}, {}) == 1);
    CHECK(sampler.sample(std::vector<float>{-infinity, NAN, -5}, {}) == 2);
}

TEST(sampler_greedy_in_large_vocabularies) {
    for (const size_t n : {size_t{4095}, size_t{4097}, size_t{20003}}) {
        std::vector<float> logits(n);
        for (size_t i = 0; i < n; ++i) logits[i] = static_cast<float>(i * 7919 % 1009) - 1200;
        for (const size_t best : {size_t{0}, size_t{4094}, n / 2, n - 1}) {
            std::vector<float> x = logits;
            x[best] = -3;
            if (best + 1 < n) x[n - 1] = -3;  // a tie
            CHECK(Sampler(greedy()).sample(x, {}) == static_cast<int32_t>(best));
            x[n / 3] = NAN;
            x[n / 4] = -infinity;
            CHECK(Sampler(greedy()).sample(x, {}) == static_cast<int32_t>(best));
        }
    }
}

TEST(sampler_takes_from_the_best_of_large_vocabularies) {
    for (const size_t n : {size_t{33}, size_t{5000}, size_t{20003}}) {
        for (const float rounded : {1.0f, 250.0f}) {  // few ties, or many
            std::vector<float> logits(n);
            for (size_t i = 0; i < n; ++i) {
                logits[i] = std::floor(static_cast<float>(i * 7919 % 10007) / rounded) * rounded / 1000;
            }
            std::vector<int32_t> ranking(n);
            std::iota(ranking.begin(), ranking.end(), 0);
            std::stable_sort(ranking.begin(), ranking.end(), [&](int a, int b) { return logits[a] > logits[b]; });
            for (const int32_t k : {1, 3, 30}) {
                auto p = random_draws(50.0f);  // nearly all alike
                p.top_k = k;
                const auto count = draws(p, logits, 1000);
                CHECK(count.size() == static_cast<size_t>(k));
                for (int32_t i = 0; i < k; ++i) CHECK(count.contains(ranking[i]));
                logits[ranking[n - 1]] = -infinity;  // the slow way: the same tokens for the same seed
                CHECK(draws(p, logits, 1000) == count);
                logits[ranking[n - 1]] = logits[ranking[n - 2]];
            }
        }
    }
}

TEST(sampler_top_p_in_large_vocabularies) {
    constexpr size_t n = 5000;
    std::vector<float> logits(n, 1.0f);  // all alike: the lower half
    auto p = random_draws();
    p.top_p = 0.5f;
    const auto count = draws(p, logits, 20000);
    CHECK(count.rbegin()->first < 2500 && count.size() > 2400);
    for (size_t i = 0; i < n; ++i) logits[i] = static_cast<float>(i) / 1000;  // e^i/1000: the last few hold half of it
    double total = 0, held = 0;
    for (const float x : logits) total += std::exp(static_cast<double>(x));
    int32_t least = n;
    while (held < 0.5 * total) held += std::exp(static_cast<double>(logits[--least]));
    const auto few = draws(p, logits, 20000);
    CHECK(few.begin()->first >= least && few.begin()->first < least + 20 && few.size() > 650);
}

TEST(sampler_follows_the_softmax) {
    const std::vector<float> logits = {0.0f, std::log(2.0f), std::log(5.0f), -infinity};
    const auto count = draws(random_draws(), logits, 40000);
    CHECK_NEAR(count.at(0) / 40000.0, 1 / 8.0, 0.01);
    CHECK_NEAR(count.at(1) / 40000.0, 2 / 8.0, 0.01);
    CHECK_NEAR(count.at(2) / 40000.0, 5 / 8.0, 0.01);
    CHECK(!count.contains(3));
}

TEST(sampler_temperature_sharpens) {
    const auto count = draws(random_draws(0.25f), {0.0f, std::log(2.0f)}, 20000);
    CHECK_NEAR(count.at(1) / 20000.0, 16 / 17.0, 0.01);
}

TEST(sampler_filters) {
    const std::vector<float> logits = {std::log(0.1f), std::log(0.5f), std::log(0.15f), std::log(0.25f)};
    auto p = random_draws();
    p.top_k = 2;
    CHECK(draws(p, logits, 2000).size() == 2);
    p = random_draws();
    p.top_p = 0.7f;  // 0.5 + 0.25
    auto count = draws(p, logits, 2000);
    CHECK(count.size() == 2 && count.contains(1) && count.contains(3));
    p = random_draws();
    p.min_p = 0.28f;  // of 0.5: 0.14
    count = draws(p, logits, 4000);
    CHECK(count.size() == 3 && !count.contains(0));
    p.top_p = 1e-6f;
    CHECK(draws(p, logits, 100).size() == 1);
}

TEST(sampler_same_seed_same_tokens) {
    const std::vector<float> logits(50, 1.0f);
    Sampler a(random_draws()), b(random_draws());
    auto other = random_draws();
    other.seed = 8;
    Sampler c(other);
    int n_equal = 0;
    for (int i = 0; i < 100; ++i) {
        const int32_t token = a.sample(logits, {});
        CHECK(token == b.sample(logits, {}));
        n_equal += token == c.sample(logits, {});
    }
    CHECK(n_equal < 20);
}

TEST(sampler_penalties) {
    const std::vector<int32_t> previous = {0, 0, 1};
    auto p = greedy();
    p.repeat_penalty = 2;
    CHECK(Sampler(p).sample(std::vector<float>{3, 2, 1.6f}, previous) == 2);
    CHECK(Sampler(p).sample(std::vector<float>{-1, -3, -1.9f}, previous) == 2);  // negative logits are multiplied
    p = greedy();
    p.frequency_penalty = 1;
    CHECK(Sampler(p).sample(std::vector<float>{3, 2.2f, 1}, previous) == 1);
    p = greedy();
    p.presence_penalty = 1.5f;
    CHECK(Sampler(p).sample(std::vector<float>{3, 2, 1.6f}, previous) == 2);
    p.penalty_window = 1;
    CHECK(Sampler(p).sample(std::vector<float>{3, 2, 1.6f}, previous) == 0);
}

TEST(sampler_bias) {
    const int32_t tokens[] = {1, 0};
    const float bias[] = {-infinity, 0.5f};
    auto p = greedy();
    p.bias_token = tokens;
    p.bias = bias;
    p.n_bias = 2;
    CHECK(Sampler(p).sample(std::vector<float>{1, 9, 1.4f}, {}) == 0);
    CHECK_THROWS(Sampler(p).sample(std::vector<float>{1}, {}), FASA_ERROR_ARGUMENT, "token 1");
}

TEST(sampler_refuses_bad_values) {
    auto p = greedy();
    p.temperature = NAN;
    CHECK_THROWS(Sampler{p}, FASA_ERROR_ARGUMENT, "temperature");
    p = greedy();
    p.top_p = 1.5f;
    CHECK_THROWS(Sampler{p}, FASA_ERROR_ARGUMENT, "top_p");
    p = greedy();
    p.top_k = -1;
    CHECK_THROWS(Sampler{p}, FASA_ERROR_ARGUMENT, "top_k");
    CHECK_THROWS(Sampler{greedy()}.sample(std::vector<float>{NAN, -infinity}, {}), FASA_ERROR, "not finite");
}
