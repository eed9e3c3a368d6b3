// Makers of all selectors, for the registry.
#pragma once

#include "select/selector.h"

namespace fasa {

std::unique_ptr<Selector> make_fasa(const SelectorSetup& setup);
std::unique_ptr<Selector> make_h2o(const SelectorSetup& setup);
std::unique_ptr<Selector> make_oracle(const SelectorSetup& setup);
std::unique_ptr<Selector> make_quest(const SelectorSetup& setup);
std::unique_ptr<Selector> make_rkv(const SelectorSetup& setup);
std::unique_ptr<Selector> make_snapkv(const SelectorSetup& setup);
std::unique_ptr<Selector> make_sparq(const SelectorSetup& setup);
std::unique_ptr<Selector> make_streaming(const SelectorSetup& setup);

}  // namespace fasa
