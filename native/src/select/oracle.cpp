// The oracle: positions ranked by the full scores. It reads every key; it shows what perfect prediction would give.
#include "select/methods.h"
#include "select/scored.h"

namespace fasa {
namespace {

class Oracle final : public ScoredSelector {
   public:
    using ScoredSelector::ScoredSelector;

   protected:
    SetQueries queries(const Step& step) override { return {step.q, nullptr, shape_.n_head, n_set_}; }
};

}  // namespace

std::unique_ptr<Selector> make_oracle(const SelectorSetup& setup) { return std::make_unique<Oracle>(setup); }

}  // namespace fasa
