// The KV cache of a context: all layers and sequences, split by dimension [FASA §5].
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"

namespace fasa {

struct KvShape {
    int32_t n_layer, n_head_kv, head_dim, n_ctx, n_seq;
    int32_t n_dom;    // dominant key dims of a split layer; 0: no layer is split
    int32_t n_dense;  // leading layers that are never split
    DomType dom_type = DomType::f16;
    bool host_rest = false;  // the rows of split layers lie in host memory

    bool is_coded() const { return n_dom > 0 && dom_type != DomType::f16; }
    bool is_split(int32_t layer) const { return n_dom > 0 && layer >= n_dense; }
    size_t n_split() const { return static_cast<size_t>(n_dom > 0 && n_layer > n_dense ? n_layer - n_dense : 0); }
    // Of one token: the dominant planes, coded or not, and the rows.
    size_t token_dom_bytes() const;
    size_t token_rest_bytes() const;
    size_t token_bytes() const { return token_dom_bytes() + token_rest_bytes(); }
    // Of all sequences. The dominant planes' bytes are those of codes (or dims) and of their scales.
    size_t scale_bytes() const;
    size_t dom_bytes() const { return token_dom_bytes() * n_ctx * n_seq; }
    size_t rest_bytes() const { return token_rest_bytes() * n_ctx * n_seq; }
    // The part of rest_bytes that lies in host memory, and values in one of its rows.
    size_t host_bytes() const;
    int32_t host_row_values() const { return host_rest ? 2 * head_dim - (is_coded() ? 0 : n_dom) : 0; }
    size_t n_bytes() const { return dom_bytes() + rest_bytes(); }
    // Of the order that dims are stored in.
    size_t order_bytes() const { return n_dom > 0 ? sizeof(int16_t) * n_layer * n_head_kv * head_dim : 0; }
};

// Rows of one KV head, copied to the host.
struct KvRows {
    std::vector<uint16_t> dom, rest;  // half precision: [n][n_dom], [n][2 * head_dim - n_dom]
    const int16_t* order;             // [head_dim]; nullptr: unchanged
    int32_t n_dom, head_dim;

    // out [head_dim], dims as in the file.
    void key(int32_t i, float* out) const;
    void value(int32_t i, float* out) const;
};

// One layout, two placements: the dominant plane is always on the device; the rest is there too (FASA-C) or in host
// memory (FASA-M), but for dense layers, which are on the device as a whole. On a CPU both are the same memory.
class KvStore {
   public:
    // order [n_layer][n_head_kv][head_dim]: which dim of the file lies at each place of a key; empty: unchanged. The
    // device must outlive the store.
    KvStore(const KvShape& shape, std::vector<int16_t> order, const Device& device);

    const KvShape& shape() const { return shape_; }
    const Device& device() const { return device_; }
    const std::vector<int16_t>& order() const { return order_; }
    // Of one KV head, for the host; nullptr: unchanged.
    const int16_t* order_of(int32_t layer, int32_t head_kv) const {
        return order_.empty() ? nullptr
                              : order_.data() + (size_t{1} * layer * shape_.n_head_kv + head_kv) * shape_.head_dim;
    }
    // For ops: its pointers are the device's.
    KvView layer(int32_t i) const;
    // Positions first .. first + n - 1.
    KvRows read(int32_t seq, int32_t layer, int32_t head_kv, int32_t first, int32_t n) const;
    // Copies the first n_tokens of sequence src over those of dst.
    void copy(int32_t dst, int32_t src, int32_t n_tokens);

    // Whether a span lies in memory that the host itself may read and write.
    bool is_on_host(const void* span) const {
        const auto* begin = static_cast<const uint8_t*>(host_rest_.data());
        return !device_.has_own_memory() || (span >= begin && span < begin + host_rest_.n_bytes());
    }
    // f(data, n_bytes) over all planes of the first n_tokens of a sequence, in a fixed order: of every layer and KV
    // head the dominant dims (coded: scales, then codes), then the rows.
    template <class F>
    void for_each_span(int32_t seq, int32_t n_tokens, F&& f) const {
        const auto span = [&](void* data, int64_t row_bytes) {
            if (row_bytes > 0) f(static_cast<uint8_t*>(data), static_cast<size_t>(row_bytes * n_tokens));
        };
        for (int32_t i = 0; i < shape_.n_layer; ++i) {
            const KvView view = layer(i);
            for (int32_t head = 0; head < shape_.n_head_kv; ++head) {
                const KeyCodes codes = view.codes_at(seq, head, 0);
                span(codes.scale, view.is_coded() ? 2 : 0);
                span(codes.code, codes.row_bytes());
                span(view.dom_at(seq, head, 0), int64_t{2} * view.n_dom);
                span(view.rest_at(seq, head, 0), 2 * view.row_values());
            }
        }
    }

   private:
    KvShape shape_;
    const Device& device_;
    std::vector<int16_t> order_;
    Buffer dom_, scales_, rest_, host_rest_, order_on_device_;  // dom_: dominant dims or their codes
};

}  // namespace fasa
