#include "kv/store.h"

#include <algorithm>

#include "base/half.h"

namespace fasa {

size_t KvShape::dom_bytes() const {
    return size_t{2} * std::max(0, n_layer - n_dense) * n_seq * n_head_kv * n_ctx * n_dom;
}

KvStore::KvStore(const KvShape& shape, std::vector<int16_t> order, const Device& device)
    : shape_(shape),
      device_(device),
      order_(std::move(order)),
      dom_(device.buffer(shape.dom_bytes(), "dominant part of the KV cache")),
      rest_(device.buffer(shape.n_bytes() - shape.dom_bytes(), "KV cache")),
      order_on_device_(device.buffer(order_.size() * sizeof(int16_t), "order of the KV cache")) {
    device.copy(order_on_device_.data(), order_.data(), order_on_device_.n_bytes());
}

KvView KvStore::layer(int32_t i) const {
    const size_t n_rows = size_t{1} * shape_.n_seq * shape_.n_head_kv * shape_.n_ctx;
    const size_t n_dense = std::min(i, shape_.n_dense), n_split = i - n_dense;
    const size_t whole = size_t{2} * shape_.head_dim;  // values of a row in a dense layer
    KvView view;
    view.n_ctx = shape_.n_ctx;
    view.n_head_kv = shape_.n_head_kv;
    view.head_dim = shape_.head_dim;
    view.n_dom = shape_.n_dom_of(i);
    view.dom = static_cast<uint16_t*>(dom_.data()) + n_rows * shape_.n_dom * n_split;
    view.rest = static_cast<uint16_t*>(rest_.data()) + n_rows * (n_dense * whole + n_split * (whole - shape_.n_dom));
    if (!order_.empty())
        view.order =
            static_cast<const int16_t*>(order_on_device_.data()) + size_t{1} * i * shape_.n_head_kv * shape_.head_dim;
    return view;
}

void KvRows::key(int32_t i, float* out) const {
    const uint16_t *dominant = dom.data() + int64_t{i} * n_dom,
                   *others = rest.data() + int64_t{i} * (2 * head_dim - n_dom);
    for (int32_t d = 0; d < head_dim; ++d) {
        out[order ? order[d] : d] = half_to_float(d < n_dom ? dominant[d] : others[d - n_dom]);
    }
}

void KvRows::value(int32_t i, float* out) const {
    const uint16_t* row = rest.data() + int64_t{i} * (2 * head_dim - n_dom) + head_dim - n_dom;
    for (int32_t d = 0; d < head_dim; ++d) out[d] = half_to_float(row[d]);
}

KvRows KvStore::read(int32_t seq, int32_t layer, int32_t head_kv, int32_t first, int32_t n) const {
    const KvView view = this->layer(layer);
    const size_t n_rows = static_cast<size_t>(n);
    KvRows rows{std::vector<uint16_t>(n_rows * view.n_dom), std::vector<uint16_t>(n_rows * view.row_values()),
                order_of(layer, head_kv), view.n_dom, view.head_dim};
    device_.copy(rows.dom.data(), view.dom_at(seq, head_kv, first), rows.dom.size() * sizeof(uint16_t));
    device_.copy(rows.rest.data(), view.rest_at(seq, head_kv, first), rows.rest.size() * sizeof(uint16_t));
    return rows;
}

void KvStore::copy(int32_t dst, int32_t src, int32_t n_tokens) {
    if (dst == src) return;
    for (int32_t i = 0; i < shape_.n_layer; ++i) {
        const KvView view = layer(i);
        for (int32_t head = 0; head < shape_.n_head_kv; ++head) {
            const size_t n = static_cast<size_t>(n_tokens);
            device_.copy(view.dom_at(dst, head, 0), view.dom_at(src, head, 0), 2 * n * view.n_dom);
            device_.copy(view.rest_at(dst, head, 0), view.rest_at(src, head, 0), 2 * n * view.row_values());
        }
    }
}

}  // namespace fasa
