#include "select/pages.h"

#include <algorithm>

namespace fasa {
void choose_pages(const float* scores, int32_t page, const SelectConfig& config, const Step& step, Ops& ops,
                  Selection& out) {
    const int32_t n_page = n_pages(step.n_pos, page), current = step.n_pos - (n_page - 1) * page;
    const int32_t n_whole = std::max(0, step.budget - current) / page;
    const int32_t first_recent = std::max(0, step.n_pos - std::max(1, config.n_recent)) / page;
    // The last pages come first in the budget: a page is never chosen without the current one.
    const int32_t n_recent = std::min(n_page - first_recent, 1 + n_whole);
    const int32_t n_sink = std::min(n_pages(config.n_sink, page), 1 + n_whole - n_recent);
    out.capacity = std::min(step.n_pos, std::max(step.budget, page));
    ops.topk(scores, n_page, {1 + n_whole, n_sink, n_recent}, out);
    ops.expand_pages(out, page, step.n_pos);
}

}  // namespace fasa
