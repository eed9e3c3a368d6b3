// StreamingLLM (arXiv 2309.17453): the first few positions and the last ones, whatever the query.
#include <algorithm>

#include "select/methods.h"

namespace fasa {
namespace {

constexpr int32_t least_sinks = 8;  // as the paper's comparison configures it [FASA §6]

class Streaming final : public Selector {
   public:
    explicit Streaming(const SelectorSetup& setup)
        : n_sink_(std::max(least_sinks, setup.config.n_sink)),
          n_set_(setup.shape.n_set(setup.config)),
          ops_(setup.ops),
          scores_(setup.scratch.scores) {}

    // All are forced, so that the scores do not matter.
    void select(const Step& step, Selection& out) override {
        const int32_t n_sink = std::min(n_sink_, step.budget);
        out.n_set = n_set_;
        out.capacity = step.budget;
        ops_.topk(scores_, step.n_pos, {step.budget, n_sink, step.budget - n_sink}, out);
    }
    bool fills_budget() const override { return true; }
    bool replayable() const override { return true; }

   private:
    int32_t n_sink_, n_set_;
    Ops& ops_;
    const float* scores_;
};

}  // namespace

std::unique_ptr<Selector> make_streaming(const SelectorSetup& setup) { return std::make_unique<Streaming>(setup); }

}  // namespace fasa
