#include "select/pages.h"

#include <algorithm>

namespace fasa {
namespace {

// A list of pages, the current one last, becomes the list of their positions; from its end, so that none is lost.
int32_t expand(int32_t* list, int32_t count, int32_t page, int32_t n_pos) {
    const int32_t total = (count - 1) * page + n_pos - list[count - 1] * page;
    for (int32_t i = count - 1, at = total; i >= 0; --i) {
        const int32_t first = list[i] * page, end = std::min(first + page, n_pos);
        at -= end - first;
        for (int32_t pos = end; pos-- > first;) list[at + pos - first] = pos;
    }
    return total;
}

}  // namespace

void average_pages(float* scores, int32_t n_set, int32_t n_ctx, int32_t page, int32_t n_pos) {
    for (int32_t set = 0; set < n_set; ++set) {
        float* row = scores + int64_t{set} * n_ctx;
        for (int32_t i = 0; i < n_pages(n_pos, page); ++i) {
            const int32_t first = i * page, end = std::min(first + page, n_pos);
            float sum = 0;
            for (int32_t pos = first; pos < end; ++pos) sum += row[pos];
            row[i] = sum / static_cast<float>(end - first);
        }
    }
}

void choose_pages(const float* scores, int32_t page, const SelectConfig& config, const Step& step, Ops& ops,
                  Selection& out) {
    const int32_t n_page = n_pages(step.n_pos, page), current = step.n_pos - (n_page - 1) * page;
    const int32_t n_whole = std::max(0, step.budget - current) / page;
    const int32_t first_recent = std::max(0, step.n_pos - std::max(1, config.n_recent)) / page;
    // The last pages come first in the budget: a page is never chosen without the current one.
    const int32_t n_recent = std::min(n_page - first_recent, 1 + n_whole);
    const int32_t n_sink = std::min(n_pages(config.n_sink, page), 1 + n_whole - n_recent);
    ops.topk(scores, n_page, {1 + n_whole, n_sink, n_recent}, out);
    for (int32_t set = 0; set < out.n_set; ++set) {
        out.count[set] = expand(out.list(set), out.count[set], page, step.n_pos);
    }
}

}  // namespace fasa
