#include "select/scored.h"

#include "select/pages.h"

namespace fasa {

int32_t ScoredSelector::rank(const Step& step, Ranking& ranking) {
    if (config_.page > 1) return 0;
    ranking = {
        queries(step), !reads_dominant_only(step), {step.budget, config_.n_sink, config_.n_recent}, scratch_.scores};
    return n_set_;
}

void ScoredSelector::select(const Step& step, Selection& out) {
    ops_.token_scores(scratch_.scores, queries(step), step.kv, step.seq, step.n_pos, !reads_dominant_only(step),
                      nullptr);
    ops_.average_pages(scratch_.scores, n_set_, config_.page, step.n_pos);
    out.n_set = n_set_;
    choose_pages(scratch_.scores, config_.page, config_, step, ops_, out);
}

uint64_t ScoredSelector::bytes_read(const Step& step) const {
    const int64_t whole = sizeof(uint16_t) * int64_t{step.kv.head_dim};
    const int64_t of_key = reads_dominant_only(step) ? step.kv.dominant_bytes() : whole;
    return static_cast<uint64_t>(step.kv.n_head_kv) * step.n_pos * static_cast<uint64_t>(of_key);
}

}  // namespace fasa
