// Logits to a token: bias, penalties, then top-k, top-p, min-p and temperature, in the order of llama.cpp.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "backend/cpu/rank_kernels.h"
#include "fasa.h"

namespace fasa {

class Sampler {
   public:
    // Throws ARGUMENT for values out of range.
    explicit Sampler(const fasa_sampler_params& params);

    // logits [n_vocab]; previous: prompt and generated tokens. Ties go to the lower id; the same seed and calls give
    // the same tokens. Throws ERROR when no token can be chosen.
    int32_t sample(std::span<const float> logits, std::span<const int32_t> previous);

   private:
    using Candidate = cpu::Candidate;  // a logit and its token

    bool has_penalties() const;
    // The logits with biases and penalties.
    std::span<const float> adjust(std::span<const float> logits, std::span<const int32_t> previous);
    void apply_bias();
    void apply_penalties(std::span<const int32_t> previous);
    int32_t greedy(std::span<const float> logits) const;
    // Makes candidates of all tokens, or of a few among which are the top_k best.
    void load(std::span<const float> logits);
    void require_finite() const;
    void keep_top_k();
    void keep_top_p();
    // The n_sorted best candidates are in order; puts more of them in order and returns how many are then.
    size_t sort_more(size_t n_sorted);
    void keep_min_p();
    int32_t draw();

    fasa_sampler_params params_;
    std::vector<std::pair<int32_t, float>> bias_;
    std::mt19937_64 random_;
    const cpu::RankKernels& kernels_;
    std::vector<float> adjusted_;  // [n_vocab]
    std::vector<Candidate> room_;  // [n_vocab]
    std::vector<Candidate> candidates_;
    std::vector<int32_t> count_;  // [n_vocab], zero between calls
    std::vector<double> weight_;
};

}  // namespace fasa
