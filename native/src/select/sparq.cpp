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
    explicit Sparq(const SelectorSetup& setup)
        : ScoredSelector(setup), sums_(static_cast<size_t>(n_set_ * shape_.layout.head_dim)) {}
    bool replayable() const override { return false; }

   protected:
    // Heads that share positions also share dims: those of the largest sum of magnitudes.
    SetQueries queries(const Step& step) override {
        const int32_t head_dim = step.kv.head_dim, heads_per_set = shape_.n_head / n_set_;
        const float* q = ops_.on_host(step.q, int64_t{shape_.n_head} * head_dim);
        for (int32_t set = 0; set < n_set_; ++set, q += int64_t{heads_per_set} * head_dim) {
            float magnitude[max_head_dim] = {}, *sum = sums_.data() + int64_t{set} * head_dim;
            std::fill_n(sum, head_dim, 0.0f);
            int16_t dims[max_head_dim];
            for (int32_t i = 0; i < heads_per_set * head_dim; ++i) {
                magnitude[i % head_dim] += std::fabs(q[i]);
                sum[i % head_dim] += q[i];
            }
            std::iota(dims, dims + head_dim, int16_t{0});
            const int32_t n_kept = std::min(2 * config_.n_tip, head_dim);
            std::stable_sort(dims, dims + head_dim, [&](int16_t a, int16_t b) { return magnitude[a] > magnitude[b]; });
            for (int32_t i = n_kept; i < head_dim; ++i) sum[dims[i]] = 0;
        }
        device_.copy(scratch_.q, sums_.data(), sizeof(float) * sums_.size());
        return {scratch_.q, nullptr, n_set_, n_set_};
    }

   private:
    std::vector<float> sums_;  // [n_set][head_dim]
};

}  // namespace

std::unique_ptr<Selector> make_sparq(const SelectorSetup& setup) { return std::make_unique<Sparq>(setup); }

}  // namespace fasa
