#include "kv/store.h"

#include <algorithm>

#include "base/half.h"

namespace fasa {

namespace {

constexpr size_t half_bytes = sizeof(uint16_t);

}  // namespace

size_t KvShape::token_dom_bytes() const {
    return n_split() * n_head_kv * (is_coded() ? code_bytes(dom_type, n_dom) + half_bytes : n_dom * half_bytes);
}

size_t KvShape::scale_bytes() const { return is_coded() ? half_bytes * n_split() * n_head_kv * n_ctx * n_seq : 0; }

size_t KvShape::token_rest_bytes() const {
    const size_t whole = 2 * half_bytes * n_layer * n_head_kv * head_dim;
    return is_coded() ? whole : whole - token_dom_bytes();
}

size_t KvShape::host_bytes() const { return half_bytes * host_row_values() * n_split() * n_head_kv * n_ctx * n_seq; }

KvStore::KvStore(const KvShape& shape, std::vector<int16_t> order, const Device& device)
    : shape_(shape),
      device_(device),
      order_(std::move(order)),
      dom_(device.buffer(shape.dom_bytes() - shape.scale_bytes(), "dominant part of the KV cache")),
      scales_(device.buffer(shape.scale_bytes(), "scales of the dominant part of the KV cache")),
      rest_(device.buffer(shape.rest_bytes() - shape.host_bytes(), "KV cache")),
      host_rest_(device.host_buffer(shape.host_bytes(), "part of the KV cache in host memory")),
      order_on_device_(device.buffer(order_.size() * sizeof(int16_t), "order of the KV cache")) {
    device.copy(order_on_device_.data(), order_.data(), order_on_device_.n_bytes());
}

KvView KvStore::layer(int32_t i) const {
    const size_t n_rows = size_t{1} * shape_.n_seq * shape_.n_head_kv * shape_.n_ctx;
    const size_t n_dense = std::min(i, shape_.n_dense), n_split = i - n_dense;
    const size_t whole = size_t{2} * shape_.head_dim;  // values of a row that holds all of the key
    const int32_t n_apart = shape_.is_coded() ? 0 : shape_.n_dom;
    KvView view;
    view.n_ctx = shape_.n_ctx;
    view.n_head_kv = shape_.n_head_kv;
    view.head_dim = shape_.head_dim;
    const size_t split_values = n_rows * n_split * (whole - n_apart);
    if (shape_.host_rest && shape_.is_split(i)) {
        view.rest = static_cast<uint16_t*>(host_rest_.data()) + split_values;
        view.host_layer = static_cast<int32_t>(n_split);
    } else {
        view.rest = static_cast<uint16_t*>(rest_.data()) + n_rows * n_dense * whole + split_values;
    }
    if (shape_.is_split(i) && shape_.is_coded()) {
        const KeyCodes first{shape_.dom_type, shape_.n_dom, static_cast<uint8_t*>(dom_.data()),
                             static_cast<uint16_t*>(scales_.data())};
        view.codes = first.at(static_cast<int64_t>(n_rows * n_split));
    } else if (shape_.is_split(i)) {
        view.n_dom = shape_.n_dom;
        view.dom = static_cast<uint16_t*>(dom_.data()) + n_rows * n_split * shape_.n_dom;
    }
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
    std::vector<uint8_t*> to;
    for_each_span(dst, n_tokens, [&](uint8_t* data, size_t) { to.push_back(data); });
    size_t i = 0;
    for_each_span(src, n_tokens, [&](const uint8_t* data, size_t n_bytes) { device_.copy(to[i++], data, n_bytes); });
}

}  // namespace fasa
