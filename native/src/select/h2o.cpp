// H2O (arXiv 2306.14048): half of the budget for the last positions, half for those that got the most attention so far,
// over prefill and decode. What is not chosen is evicted: it gets no more attention and never comes back.
#include "base/error.h"
#include "select/methods.h"

namespace fasa {
namespace {

class H2o final : public Selector {
   public:
    explicit H2o(const SelectorSetup& setup)
        : config_(setup.config),
          shape_(setup.shape),
          n_set_(shape_.n_set(config_)),
          ops_(setup.ops),
          alive_(setup.scratch.selection),
          states_(size_t{1} * shape_.n_layer * shape_.n_seq),
          mass_(setup.device.buffer(h2o_bytes(config_, shape_), "attention mass of method h2o")) {}

    // A prompt attends to everything. A single token's attention is counted over what is not evicted yet, itself
    // included: the paper's cache of one more than the budget.
    void observe(int32_t layer, Rows rows, const float* q, float scale, const KvView& kv) override {
        if (layer < config_.dense_layers) return;
        State& s = state(layer, rows.seq);
        if (rows.pos0 == 0) s = {};
        s.n_seen = s.n_seen == rows.pos0 ? rows.pos0 + rows.n : unknown;
        if (s.n_seen == unknown) return;
        s.n_alive += rows.n;
        float* mass = mass_of(layer, rows.seq);
        ops_.clear_scores(mass, n_set_, rows.pos0, rows.n);
        if (rows.n > 1) return ops_.attention_mass(mass, n_set_, q, shape_.n_head, scale, kv, rows);
        alive_.n_set = n_set_;
        alive_.capacity = s.n_alive;
        ops_.topk(mass, s.n_seen, {s.n_alive, 0, 0}, alive_);
        ops_.selected_mass(mass, q, shape_.n_head, scale, kv, rows.seq, alive_);
    }

    void select(const Step& step, Selection& out) override {
        State& s = state(step.layer, step.seq);
        if (s.n_seen != step.n_pos) {
            fail(
                FASA_ERROR_ARGUMENT,
                "method h2o sums up attention from the first token on, and has not seen all of this sequence: truncate "
                "it to 0 tokens and process them again");
        }
        float* mass = mass_of(step.layer, step.seq);
        out.n_set = n_set_;
        out.capacity = step.budget;
        ops_.topk(mass, step.n_pos, {step.budget, config_.n_sink, step.budget - step.budget / 2}, out);
        ops_.keep_listed(mass, step.n_pos, out);
        s.n_alive = step.budget;
    }

    bool fills_budget() const override { return true; }

    void forget(int32_t seq, int32_t n_tokens) override {
        for (int32_t layer = 0; layer < shape_.n_layer; ++layer) {
            int32_t& n_seen = state(layer, seq).n_seen;
            if (n_seen > n_tokens) n_seen = unknown;  // sums cannot be taken back
        }
    }

   private:
    static constexpr int32_t unknown = -1;  // until the sequence starts anew

    // Of one layer and sequence.
    struct State {
        int32_t n_seen = 0;   // positions whose queries have been counted
        int32_t n_alive = 0;  // of them, not evicted: as many in every list
    };

    State& state(int32_t layer, int32_t seq) { return states_[layer * shape_.n_seq + seq]; }
    float* mass_of(int32_t layer, int32_t seq) const {
        const int64_t at = int64_t{layer} * shape_.n_seq + seq;
        return static_cast<float*>(mass_.data()) + at * n_set_ * shape_.n_ctx;
    }

    const SelectConfig config_;
    const SelectShape shape_;
    const int32_t n_set_;
    Ops& ops_;
    Selection& alive_;
    std::vector<State> states_;  // [n_layer][n_seq]
    Buffer mass_;                // [n_layer][n_seq][n_set][n_ctx], float, -infinity where a position was evicted
};

}  // namespace

size_t h2o_bytes(const SelectConfig& config, const SelectShape& shape) {
    return sizeof(float) * shape.n_layer * shape.n_seq * shape.n_set(config) * shape.n_ctx;
}

std::unique_ptr<Selector> make_h2o(const SelectorSetup& setup) { return std::make_unique<H2o>(setup); }

}  // namespace fasa
