// Choosing positions by the page: what Quest does, and any scored method may.
#pragma once

#include "select/selector.h"

namespace fasa {

inline int32_t n_pages(int32_t n_pos, int32_t page) { return (n_pos + page - 1) / page; }

// The positions of the best pages by scores [out.n_set][n_ctx], as many whole pages as the budget holds, the current
// one always among them and all that hold a forced position. Among equals the earlier page wins.
void choose_pages(const float* scores, int32_t page, const SelectConfig& config, const Step& step, Ops& ops,
                  Selection& out);

}  // namespace fasa
