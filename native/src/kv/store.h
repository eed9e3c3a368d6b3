// The KV cache of a context: one allocation, all layers and sequences.
#pragma once

#include <cstdint>

#include "backend/views.h"
#include "base/buffer.h"

namespace fasa {

struct KvShape {
    int32_t n_layer, n_head_kv, head_dim, n_ctx, n_seq;

    size_t token_bytes() const { return size_t{4} * n_layer * n_head_kv * head_dim; }  // key and value, half precision
    size_t n_bytes() const { return token_bytes() * n_ctx * n_seq; }
};

class KvStore {
   public:
    explicit KvStore(const KvShape& shape) : shape_(shape), memory_(shape.n_bytes(), "KV cache") {}

    const KvShape& shape() const { return shape_; }
    KvView layer(int32_t i) const;
    // Copies the first n_tokens of sequence src over those of dst.
    void copy(int32_t dst, int32_t src, int32_t n_tokens);

    // f(data, n_bytes) over the rows of the first n_tokens of a sequence, in a fixed order.
    template <class F>
    void for_each_span(int32_t seq, int32_t n_tokens, F&& f) const {
        for (int32_t i = 0; i < shape_.n_layer; ++i) {
            const KvView view = layer(i);
            const size_t n_bytes = size_t{2} * view.row_values() * n_tokens;
            for (int32_t head = 0; head < shape_.n_head_kv; ++head) f(view.row(seq, head, 0), n_bytes);
        }
    }

   private:
    KvShape shape_;
    Buffer memory_;
};

}  // namespace fasa
