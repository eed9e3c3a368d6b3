// SnapKV (arXiv 2404.14469): what the last queries attend to is kept.
#include "select/methods.h"
#include "select/voting.h"

namespace fasa {

std::unique_ptr<Selector> make_snapkv(const SelectorSetup& setup) { return std::make_unique<VotingSelector>(setup); }

}  // namespace fasa
