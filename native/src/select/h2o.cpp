// H2O (arXiv 2306.14048): half of the budget for the last positions, half for those that got the most attention so far,
// over prefill and decode. What is not chosen is evicted: it gets no more attention and never comes back.
#include <algorithm>
#include <limits>

#include "base/error.h"
#include "select/methods.h"

namespace fasa {
namespace {

constexpr float evicted = -std::numeric_limits<float>::infinity();

class H2o final : public Selector {
   public:
    explicit H2o(const SelectorSetup& setup)
        : config_(setup.config),
          shape_(setup.shape),
          n_set_(shape_.n_set(config_)),
          ops_(setup.ops),
          alive_(setup.scratch.selection),
          n_seen_(size_t{1} * shape_.n_layer * shape_.n_seq),
          mass_(sizeof(float) * n_seen_.size() * n_set_ * shape_.n_ctx, "attention mass of method h2o") {}

    // A prompt attends to everything. A single token's attention is counted over what is not evicted yet, itself
    // included: the paper's cache of one more than the budget.
    void observe(int32_t layer, Rows rows, const float* q, float scale, const KvView& kv) override {
        if (layer < config_.dense_layers) return;
        int32_t& n = n_seen(layer, rows.seq);
        n = rows.pos0 == 0 || n == rows.pos0 ? rows.pos0 + rows.n : unknown;
        if (n == unknown) return;
        float* mass = mass_of(layer, rows.seq);
        for (int32_t set = 0; set < n_set_; ++set) std::fill_n(mass + set * n_ctx() + rows.pos0, rows.n, 0.0f);
        if (rows.n > 1) return ops_.attention_mass(mass, n_set_, q, shape_.n_head, scale, kv, rows);
        list_alive(mass, n);
        ops_.selected_mass(mass, q, shape_.n_head, scale, kv, rows.seq, alive_);
    }

    void select(const Step& step, Selection& out) override {
        if (n_seen(step.layer, step.seq) != step.n_pos) {
            fail(
                FASA_ERROR_ARGUMENT,
                "method h2o sums up attention from the first token on, and has not seen all of this sequence: truncate "
                "it to 0 tokens and process them again");
        }
        float* mass = mass_of(step.layer, step.seq);
        out.n_set = n_set_;
        ops_.topk(mass, step.n_pos, {step.budget, config_.n_sink, step.budget - step.budget / 2}, out);
        for (int32_t set = 0; set < n_set_; ++set) {
            evict_others(mass + set * n_ctx(), step.n_pos, out.list(set), out.count[set]);
        }
    }

    void forget(int32_t seq, int32_t n_tokens) override {
        for (int32_t layer = 0; layer < shape_.n_layer; ++layer) {
            if (n_seen(layer, seq) > n_tokens) n_seen(layer, seq) = unknown;  // sums cannot be taken back
        }
    }

   private:
    static constexpr int32_t unknown = -1;  // until the sequence starts anew

    int64_t n_ctx() const { return shape_.n_ctx; }
    int32_t& n_seen(int32_t layer, int32_t seq) { return n_seen_[layer * shape_.n_seq + seq]; }
    float* mass_of(int32_t layer, int32_t seq) const {
        return static_cast<float*>(mass_.data()) + (int64_t{layer} * shape_.n_seq + seq) * n_set_ * n_ctx();
    }

    void list_alive(const float* mass, int32_t n_pos) {
        alive_.n_set = n_set_;
        for (int32_t set = 0; set < n_set_; ++set, mass += n_ctx()) {
            int32_t& n = alive_.count[set] = 0;
            for (int32_t pos = 0; pos < n_pos; ++pos) {
                if (mass[pos] != evicted) alive_.list(set)[n++] = pos;
            }
        }
    }

    static void evict_others(float* mass, int32_t n_pos, const int32_t* kept, int32_t n_kept) {
        for (int32_t pos = 0; pos < n_pos; ++pos) {
            if (mass[pos] != evicted && !std::binary_search(kept, kept + n_kept, pos)) mass[pos] = evicted;
        }
    }

    const SelectConfig config_;
    const SelectShape shape_;
    const int32_t n_set_;
    Ops& ops_;
    Selection& alive_;
    std::vector<int32_t> n_seen_;  // [n_layer][n_seq]: positions whose queries have been counted
    Buffer mass_;                  // [n_layer][n_seq][n_set][n_ctx], float
};

}  // namespace

std::unique_ptr<Selector> make_h2o(const SelectorSetup& setup) { return std::make_unique<H2o>(setup); }

}  // namespace fasa
