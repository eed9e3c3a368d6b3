#include "runtime/tap.h"

#include <utility>

namespace fasa {

void Tap::record(int32_t layer, Rows rows, std::span<const float> q, const KvStore& kv,
                 std::vector<std::vector<int32_t>> positions) {
    const size_t n_recorded = records_.size();
    if (n_recorded >= size_t{1} * n_steps_ * n_layer_) return;
    if (n_recorded % n_layer_ != static_cast<size_t>(layer)) {  // the step before was cancelled in the middle
        records_.resize(n_recorded / n_layer_ * n_layer_);
        if (layer != 0) return;
    }
    const int32_t head_dim = kv.shape().head_dim, group = n_head_ / kv.shape().n_head_kv;
    Record record{rows.seq, rows.pos0 + 1, std::vector<float>(q.size()), std::move(positions)};
    for (int32_t head = 0; head < n_head_; ++head) {
        const int16_t* order = kv.order_of(layer, head / group);
        float* to = record.q.data() + int64_t{head} * head_dim;
        for (int32_t d = 0; d < head_dim; ++d) to[order ? order[d] : d] = q[int64_t{head} * head_dim + d];
    }
    records_.push_back(std::move(record));
}

}  // namespace fasa
