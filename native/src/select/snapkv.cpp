// SnapKV (arXiv 2404.14469): what the last queries attend to is kept.
#include "select/methods.h"
#include "select/voting.h"

namespace fasa {

size_t snapkv_bytes(const SelectConfig& config, const SelectShape& shape) {
    return (size_t{1} * shape.n_layer * shape.n_seq + 1) * VotingSelector::window_bytes(config, shape);
}

std::unique_ptr<Selector> make_snapkv(const SelectorSetup& setup) { return std::make_unique<VotingSelector>(setup); }

}  // namespace fasa
