#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace fasa {
namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

using cpu::better;

constexpr size_t block = 4096;  // logits looked through at once

// The highest of the finite values; -infinity: there is none.
float highest(std::span<const float> x) {
    float top = minus_infinity;
    for (const float value : x) {
        if (std::isfinite(value) && value > top) top = value;
    }
    return top;
}

[[noreturn]] void fail_without_tokens() {
    fail(FASA_ERROR, "no token can be chosen: all are banned by logit_bias, or the model's logits are not finite");
}

void check(bool ok, const char* name, float value, const char* expected) {
    if (!ok) fail(FASA_ERROR_ARGUMENT, "%s is %g, expected %s", name, static_cast<double>(value), expected);
}

}  // namespace

Sampler::Sampler(const fasa_sampler_params& p)
    : params_(p), random_(p.seed), kernels_(cpu::rank_kernels(cpu_info().isa)) {
    check(p.temperature >= 0 && std::isfinite(p.temperature), "temperature", p.temperature, "0 (greedy) or more");
    check(p.top_k >= 0, "top_k", static_cast<float>(p.top_k), "0 (off) or more");
    check(p.top_p >= 0 && p.top_p <= 1, "top_p", p.top_p, "0 to 1 (1: off)");
    check(p.min_p >= 0 && p.min_p <= 1, "min_p", p.min_p, "0 (off) to 1");
    check(p.repeat_penalty >= 0 && std::isfinite(p.repeat_penalty), "repeat_penalty", p.repeat_penalty,
          "a positive number (1: off)");
    check(std::isfinite(p.presence_penalty), "presence_penalty", p.presence_penalty, "a finite number");
    check(std::isfinite(p.frequency_penalty), "frequency_penalty", p.frequency_penalty, "a finite number");
    check(p.penalty_window >= -1, "penalty_window", static_cast<float>(p.penalty_window),
          "-1 (all), 0 (the default) or more");
    check(p.n_bias == 0 || (p.bias_token && p.bias), "n_bias", static_cast<float>(p.n_bias), "0 without bias arrays");
    for (int32_t i = 0; i < p.n_bias; ++i) {
        check(!std::isnan(p.bias[i]) && p.bias[i] < std::numeric_limits<float>::infinity(), "bias", p.bias[i],
              "a number, or -infinity");
        bias_.emplace_back(p.bias_token[i], p.bias[i]);
    }
    params_.bias_token = nullptr;
    params_.bias = nullptr;
    if (params_.repeat_penalty == 0) params_.repeat_penalty = 1;
    if (params_.top_p == 0) params_.top_p = 1;
    if (params_.penalty_window == 0) params_.penalty_window = 64;
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> previous) {
    const std::span<const float> adjusted = adjust(logits, previous);
    if (params_.temperature == 0) return greedy(adjusted);
    load(adjusted);
    require_finite();
    keep_top_k();
    keep_top_p();
    keep_min_p();
    return draw();
}

bool Sampler::has_penalties() const {
    return params_.repeat_penalty != 1 || params_.presence_penalty != 0 || params_.frequency_penalty != 0;
}

std::span<const float> Sampler::adjust(std::span<const float> logits, std::span<const int32_t> previous) {
    if (bias_.empty() && !has_penalties()) return logits;
    adjusted_.assign(logits.begin(), logits.end());
    count_.resize(logits.size());
    apply_bias();
    apply_penalties(previous);
    return adjusted_;
}

void Sampler::load(std::span<const float> logits) {
    const int n = static_cast<int>(logits.size()), k = params_.top_k;
    room_.resize(logits.size());
    if (k > 0 && k < n) {
        const cpu::ScoreRange range = kernels_.range(logits.data(), n);
        if (std::isfinite(range.sum_squares)) {
            const float low = cpu::bracket_best(kernels_, logits.data(), n, k, range).low;
            constexpr float high = std::numeric_limits<float>::infinity();
            const int n_above = kernels_.append_between(logits.data(), n, low, high, room_.data());
            candidates_.assign(room_.begin(), room_.begin() + n_above);
            return;
        }
    }
    for (int32_t i = 0; i < n; ++i) room_[i] = {std::isfinite(logits[i]) ? logits[i] : minus_infinity, i};
    candidates_ = room_;
}

void Sampler::require_finite() const {
    const bool finite =
        std::any_of(candidates_.begin(), candidates_.end(), [](const Candidate& c) { return std::isfinite(c.score); });
    if (!finite) fail_without_tokens();
}

void Sampler::apply_bias() {
    for (const auto& [token, bias] : bias_) {
        if (token < 0 || static_cast<size_t>(token) >= adjusted_.size()) {
            fail(FASA_ERROR_ARGUMENT, "logit bias for token %d: the vocabulary has %zu tokens", token,
                 adjusted_.size());
        }
        adjusted_[token] += bias;
    }
}

void Sampler::apply_penalties(std::span<const int32_t> previous) {
    const fasa_sampler_params& p = params_;
    if (!has_penalties()) return;
    if (p.penalty_window > 0 && previous.size() > static_cast<size_t>(p.penalty_window)) {
        previous = previous.last(static_cast<size_t>(p.penalty_window));
    }
    for (const int32_t token : previous) {
        if (token >= 0 && static_cast<size_t>(token) < count_.size()) ++count_[token];
    }
    for (const int32_t token : previous) {
        if (token < 0 || static_cast<size_t>(token) >= count_.size() || count_[token] == 0) continue;
        float& logit = adjusted_[token];
        logit = logit <= 0 ? logit * p.repeat_penalty : logit / p.repeat_penalty;
        logit -= static_cast<float>(count_[token]) * p.frequency_penalty + p.presence_penalty;
        count_[token] = 0;
    }
}

// Block by block: the first that holds the highest logit is looked through once more.
int32_t Sampler::greedy(std::span<const float> logits) const {
    float top = minus_infinity;
    std::span<const float> best;
    for (size_t first = 0; first < logits.size(); first += block) {
        const std::span<const float> part = logits.subspan(first, std::min(block, logits.size() - first));
        const cpu::ScoreRange range = kernels_.range(part.data(), static_cast<int>(part.size()));
        const float here = std::isfinite(range.sum_squares) ? range.max : highest(part);
        if (here > top) {
            top = here;
            best = part;
        }
    }
    if (best.empty()) fail_without_tokens();
    return static_cast<int32_t>(std::find(best.begin(), best.end(), top) - best.begin() +
                                (best.data() - logits.data()));
}

void Sampler::keep_top_k() {
    const size_t k = static_cast<size_t>(params_.top_k);
    if (k == 0 || k >= candidates_.size()) return;
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(k - 1), candidates_.end(),
                     better);
    candidates_.resize(k);
}

// The most likely tokens whose probabilities reach top_p together; at least one.
void Sampler::keep_top_p() {
    if (params_.top_p >= 1) return;
    const float top = std::min_element(candidates_.begin(), candidates_.end(), better)->score;
    double total = 0, sum = 0;
    for (const Candidate& c : candidates_) total += std::exp(static_cast<double>(c.score) - top);
    size_t n_sorted = 0;
    for (size_t i = 0; i < candidates_.size(); ++i) {
        if (i == n_sorted) n_sorted = sort_more(n_sorted);
        sum += std::exp(static_cast<double>(candidates_[i].score) - top);
        if (sum >= params_.top_p * total) {
            candidates_.resize(i + 1);
            return;
        }
    }
}

size_t Sampler::sort_more(size_t n_sorted) {
    const size_t n = std::min(candidates_.size(), std::max<size_t>(64, 4 * n_sorted));
    const auto first = candidates_.begin() + static_cast<std::ptrdiff_t>(n_sorted);
    const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(n);
    if (end != candidates_.end()) std::nth_element(first, end, candidates_.end(), better);
    std::sort(first, end, better);
    return n;
}

// Tokens at least min_p times as likely as the most likely one.
void Sampler::keep_min_p() {
    if (params_.min_p <= 0) return;
    const float top = std::min_element(candidates_.begin(), candidates_.end(), better)->score;
    const float least = top + std::log(params_.min_p);
    std::erase_if(candidates_, [&](const Candidate& c) { return c.score < least; });
}

int32_t Sampler::draw() {
    // By id, so that the outcome does not depend on how the steps before left the order.
    std::sort(candidates_.begin(), candidates_.end(),
              [](const Candidate& a, const Candidate& b) { return a.pos < b.pos; });
    const float top = std::min_element(candidates_.begin(), candidates_.end(), better)->score;
    weight_.resize(candidates_.size());
    double total = 0;
    for (size_t i = 0; i < candidates_.size(); ++i) {
        total += std::exp((static_cast<double>(candidates_[i].score) - top) / params_.temperature);
        weight_[i] = total;
    }
    const double at = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
    const auto chosen = std::upper_bound(weight_.begin(), weight_.end(), at);
    const size_t i = std::min(static_cast<size_t>(chosen - weight_.begin()), candidates_.size() - 1);
    return candidates_[i].pos;
}

}  // namespace fasa
