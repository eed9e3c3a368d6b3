#include "select/scored.h"

#include "select/pages.h"

namespace fasa {

void ScoredSelector::select(const Step& step, Selection& out) {
    const Budget budget{step.budget, config_.n_sink, config_.n_recent};
    const bool by_page = config_.page > 1;
    ops_.token_scores(scratch_.scores, queries(step), step.kv, step.seq, step.n_pos, !reads_dominant_only(step),
                      by_page ? nullptr : &budget);
    out.n_set = n_set_;
    if (by_page) {
        ops_.average_pages(scratch_.scores, n_set_, config_.page, step.n_pos);
        choose_pages(scratch_.scores, config_.page, config_, step, ops_, out);
    } else {
        out.capacity = step.budget;
        ops_.topk(scratch_.scores, step.n_pos, budget, out);
    }
}

uint64_t ScoredSelector::bytes_read(const Step& step) const {
    const int64_t whole = sizeof(uint16_t) * int64_t{step.kv.head_dim};
    const int64_t of_key = reads_dominant_only(step) ? step.kv.dominant_bytes() : whole;
    return static_cast<uint64_t>(step.kv.n_head_kv) * step.n_pos * static_cast<uint64_t>(of_key);
}

}  // namespace fasa
