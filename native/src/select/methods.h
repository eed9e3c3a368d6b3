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

// Bytes of device memory that they take, beside the shared scratch; the others take none.
size_t fasa_bytes(const SelectConfig& config, const SelectShape& shape);
size_t h2o_bytes(const SelectConfig& config, const SelectShape& shape);
size_t quest_bytes(const SelectConfig& config, const SelectShape& shape);
size_t rkv_bytes(const SelectConfig& config, const SelectShape& shape);
size_t snapkv_bytes(const SelectConfig& config, const SelectShape& shape);

}  // namespace fasa
