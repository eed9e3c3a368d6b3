// R-KV (arXiv 2505.24133): SnapKV's votes weighed against how much a key repeats others.
#include <algorithm>
#include <cmath>

#include "select/methods.h"
#include "select/voting.h"

namespace fasa {
namespace {

size_t similarity_bytes(const SelectShape& shape) { return sizeof(float) * shape.n_head_kv * shape.n_ctx; }

// A position is worth lambda * importance - (1 - lambda) * redundancy, with lambda = 1 - redundancy_weight:
//   importance: its pooled votes, as a mean over voters and heads;
//   redundancy: softmax over all cached positions of the mean cosine between its key and every other.
// The paper leaves the latest of a key's near copies out of that mean, which changes it by less than 1 / n_pos; here
// all count, so that the mean is one product with the sum of the unit keys and not n_pos² of them.
class Rkv final : public VotingSelector {
   public:
    explicit Rkv(const SelectorSetup& setup)
        : VotingSelector(setup),
          redundancy_(size_t{1} * shape_.n_head_kv * shape_.n_ctx),
          similarity_(device_.buffer(similarity_bytes(shape_), "similarity of keys")) {}

   protected:
    void appraise(const Step& step, float* votes, int32_t n_voters) override {
        float* similarity = static_cast<float*>(similarity_.data());
        ops_.key_similarity(similarity, step.kv, step.seq, step.n_pos);
        bytes_read_ += 2 * sizeof(uint16_t) * static_cast<uint64_t>(shape_.n_head_kv) * step.n_pos * step.kv.head_dim;
        for (int32_t head = 0; head < shape_.n_head_kv; ++head) {
            const float* of_head = ops_.on_host(similarity + int64_t{head} * shape_.n_ctx, step.n_pos);
            std::copy_n(of_head, step.n_pos, row(head));
            soften(row(head), step.n_pos);
        }
        const int32_t n_heads = shape_.n_head / n_set_;
        const float share = (1 - config_.redundancy_weight) / static_cast<float>(n_voters * n_heads);
        for (int32_t set = 0; set < n_set_; ++set) {
            float* worth = votes + int64_t{set} * shape_.n_ctx;
            const float* redundancy = row(set * shape_.n_head_kv / n_set_);
            for (int32_t pos = 0; pos < step.n_pos - n_voters; ++pos) {
                worth[pos] = share * worth[pos] - config_.redundancy_weight * redundancy[pos];
            }
        }
    }

   private:
    float* row(int32_t head_kv) { return redundancy_.data() + int64_t{head_kv} * shape_.n_ctx; }

    static void soften(float* x, int32_t n) {
        const float top = *std::max_element(x, x + n);
        double sum = 0;
        for (int32_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - top);
        for (int32_t i = 0; i < n; ++i) x[i] = static_cast<float>(x[i] / sum);
    }

    std::vector<float> redundancy_;  // [n_head_kv][n_ctx]
    Buffer similarity_;              // the same, before it is softened
};

}  // namespace

size_t rkv_bytes(const SelectConfig& config, const SelectShape& shape) {
    return snapkv_bytes(config, shape) + similarity_bytes(shape);
}

std::unique_ptr<Selector> make_rkv(const SelectorSetup& setup) { return std::make_unique<Rkv>(setup); }

}  // namespace fasa
