// SparQ (arXiv 2312.04985): scores from the 2 * n_tip query dims of largest magnitude, chosen anew at every step.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "select/methods.h"
#include "select/scored.h"

namespace fasa {
namespace {

class Sparq final : public ScoredSelector {
   public:
    using ScoredSelector::ScoredSelector;

   protected:
    // Heads that share positions also share dims: those of the largest sum of magnitudes.
    void mask(const Step& step, int32_t head, float* q) override {
        const int32_t head_dim = step.kv.head_dim, group = config_.tokens_per_head ? 1 : shape_.group();
        const float* first = step.q + int64_t{head / group * group} * head_dim;
        float magnitude[max_head_dim] = {};
        int16_t dims[max_head_dim];
        for (int32_t h = 0; h < group; ++h) {
            for (int32_t d = 0; d < head_dim; ++d) magnitude[d] += std::fabs(first[int64_t{h} * head_dim + d]);
        }
        std::iota(dims, dims + head_dim, int16_t{0});
        const int32_t n_kept = std::min(2 * config_.n_tip, head_dim);
        std::stable_sort(dims, dims + head_dim, [&](int16_t a, int16_t b) { return magnitude[a] > magnitude[b]; });
        for (int32_t i = n_kept; i < head_dim; ++i) q[dims[i]] = 0;
    }
};

}  // namespace

std::unique_ptr<Selector> make_sparq(const SelectorSetup& setup) { return std::make_unique<Sparq>(setup); }

}  // namespace fasa
