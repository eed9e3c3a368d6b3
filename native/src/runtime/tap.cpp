#include "runtime/tap.h"

namespace fasa {

void Tap::record(int32_t layer, Rows rows, const float* q, const KvView& kv, const Selection* selection) {
    const size_t n_recorded = records_.size();
    if (n_recorded >= size_t{1} * n_steps_ * n_layer_) return;
    if (n_recorded % n_layer_ != static_cast<size_t>(layer)) {  // the step before was cancelled in the middle
        records_.resize(n_recorded / n_layer_ * n_layer_);
        if (layer != 0) return;
    }
    Record record{rows.seq, rows.pos0 + 1, std::vector<float>(size_t{1} * n_head_ * kv.head_dim), {}};
    for (int32_t head = 0; head < n_head_; ++head) {
        const int16_t* order = kv.order_of(head / (n_head_ / kv.n_head_kv));
        float* to = record.q.data() + int64_t{head} * kv.head_dim;
        for (int32_t d = 0; d < kv.head_dim; ++d) to[order ? order[d] : d] = q[int64_t{head} * kv.head_dim + d];
    }
    for (int32_t set = 0; selection && set < selection->n_set; ++set) {
        const int32_t* list = selection->list(set);
        record.positions.emplace_back(list, list + selection->count[set]);
    }
    records_.push_back(std::move(record));
}

}  // namespace fasa
