#include "kv/store.h"

#include <algorithm>

namespace fasa {

size_t KvShape::dom_bytes() const {
    return size_t{2} * std::max(0, n_layer - n_dense) * n_seq * n_head_kv * n_ctx * n_dom;
}

size_t KvShape::host_bytes() const {
    const size_t row_bytes = size_t{2} * (2 * head_dim - n_dom);
    return host_rest ? row_bytes * std::max(0, n_layer - n_dense) * n_seq * n_head_kv * n_ctx : 0;
}

KvStore::KvStore(const KvShape& shape, std::vector<int16_t> order, const Device& device)
    : shape_(shape),
      device_(device),
      order_(std::move(order)),
      dom_(device.buffer(shape.dom_bytes(), "dominant part of the KV cache")),
      rest_(device.buffer(shape.n_bytes() - shape.dom_bytes() - shape.host_bytes(), "KV cache")),
      host_rest_(device.host_buffer(shape.host_bytes(), "part of the KV cache in host memory")),
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
    const size_t split_values = n_rows * n_split * (whole - shape_.n_dom);
    if (shape_.host_rest && i >= shape_.n_dense) {
        view.rest = static_cast<uint16_t*>(host_rest_.data()) + split_values;
        view.host_layer = static_cast<int32_t>(n_split);
    } else {
        view.rest = static_cast<uint16_t*>(rest_.data()) + n_rows * n_dense * whole + split_values;
    }
    if (!order_.empty())
        view.order =
            static_cast<const int16_t*>(order_on_device_.data()) + size_t{1} * i * shape_.n_head_kv * shape_.head_dim;
    return view;
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
