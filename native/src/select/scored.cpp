#include "select/scored.h"

#include <algorithm>

namespace fasa {

// A set of heads ranks positions by the sum of its heads' raw scores, which is one dot product with the sum of their
// queries.
void ScoredSelector::select(const Step& step, Selection& out) {
    const int32_t head_dim = step.kv.head_dim, heads_per_set = shape_.n_head / n_set();
    const bool dominant_only = reads_dominant_only(step);
    float head_q[max_head_dim];
    for (int32_t set = 0; set < n_set(); ++set) {
        float* q = scratch_.q + int64_t{set} * head_dim;
        std::fill_n(q, head_dim, 0.0f);
        for (int32_t head = set * heads_per_set; head < (set + 1) * heads_per_set; ++head) {
            std::copy_n(step.q + int64_t{head} * head_dim, head_dim, head_q);
            if (!dominant_only) mask(step, head, head_q);
            for (int32_t d = 0; d < head_dim; ++d) q[d] += head_q[d];
        }
    }
    ops_.token_scores(scratch_.scores, scratch_.q, n_set(), step.kv, step.seq, step.n_pos, !dominant_only);
    out.n_set = n_set();
    if (config_.page > 1) {
        choose_pages(scratch_.scores, shape_.n_ctx, config_, step, ops_, out);
    } else {
        ops_.topk(scratch_.scores, step.n_pos, step.budget, config_.n_sink, config_.n_recent, out);
    }
}

uint64_t ScoredSelector::bytes_read(const Step& step) const {
    const int32_t dims = reads_dominant_only(step) ? step.kv.n_dom : step.kv.head_dim;
    return sizeof(uint16_t) * static_cast<uint64_t>(step.kv.n_head_kv) * step.n_pos * dims;
}

void choose_pages(float* scores, int32_t n_ctx, const SelectConfig& config, const Step& step, Ops& ops,
                  Selection& out) {
    const int32_t page = config.page, n_page = (step.n_pos + page - 1) / page;
    for (int32_t set = 0; set < out.n_set; ++set) {
        float* row = scores + int64_t{set} * n_ctx;
        for (int32_t i = 0; i < n_page; ++i) {
            const int32_t first = i * page, last = std::min(first + page, step.n_pos);
            float sum = 0;
            for (int32_t pos = first; pos < last; ++pos) sum += row[pos];
            row[i] = sum / static_cast<float>(last - first);
        }
    }
    const auto pages = [&](int32_t n) { return (n + page - 1) / page; };
    const int32_t n_sink = pages(config.n_sink), n_recent = std::max(1, pages(config.n_recent));
    ops.topk(scores, n_page, std::max(1, step.budget / page), n_sink, n_recent, out);
    for (int32_t set = 0; set < out.n_set; ++set) {  // pages become positions, from the last one so that none is lost
        int32_t* list = out.list(set);
        const int32_t n = out.count[set], last_size = step.n_pos - list[n - 1] * page;
        const int32_t total = (n - 1) * page + std::min(page, last_size);
        for (int32_t i = n - 1, at = total; i >= 0; --i) {
            const int32_t first = list[i] * page, end = std::min(first + page, step.n_pos);
            at -= end - first;
            for (int32_t pos = end; pos-- > first;) list[at + pos - first] = pos;
        }
        out.count[set] = total;
    }
}

}  // namespace fasa
