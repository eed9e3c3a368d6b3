#include "backend/cpu/baselines.h"

#include <algorithm>
#include <limits>

namespace fasa::cpu {
namespace {

// From the list's end, so that no page is lost to positions.
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

void clear_scores(float* scores, int n_set, int64_t n_ctx, int32_t first, int32_t n) {
    for (int set = 0; set < n_set; ++set) std::fill_n(scores + set * n_ctx + first, n, 0.0f);
}

void keep_listed(float* scores, int64_t n_ctx, int32_t n_pos, const Selection& selection) {
    for (int32_t set = 0; set < selection.n_set; ++set) {
        float* row = scores + set * n_ctx;
        const int32_t *next = selection.list(set), *end = next + selection.count[set];
        for (int32_t pos = 0; pos < n_pos; ++pos) {
            if (next < end && *next == pos) {
                ++next;
            } else {
                row[pos] = -std::numeric_limits<float>::infinity();
            }
        }
    }
}

void average_pages(float* scores, int n_set, int64_t n_ctx, int32_t page, int32_t n_pos) {
    for (int set = 0; set < n_set; ++set) {
        float* row = scores + set * n_ctx;
        for (int32_t i = 0; i * page < n_pos; ++i) {
            const int32_t first = i * page, end = std::min(first + page, n_pos);
            float sum = 0;
            for (int32_t pos = first; pos < end; ++pos) sum += row[pos];
            row[i] = sum / static_cast<float>(end - first);
        }
    }
}

void expand_pages(Selection& selection, int32_t page, int32_t n_pos) {
    for (int32_t set = 0; set < selection.n_set; ++set) {
        selection.count[set] = expand(selection.list(set), selection.count[set], page, n_pos);
    }
}

void bound_queries(float* bounds, int n_set, const float* q, int n_head, int head_dim) {
    std::fill_n(bounds, int64_t{n_set} * 2 * head_dim, 0.0f);
    for (int head = 0; head < n_head; ++head) {
        float* high = bounds + int64_t{head} * n_set / n_head * 2 * head_dim;
        for (int d = 0; d < head_dim; ++d) {
            const float value = q[int64_t{head} * head_dim + d];
            high[d] += std::max(value, 0.0f);
            high[head_dim + d] += std::min(value, 0.0f);
        }
    }
}

}  // namespace fasa::cpu
