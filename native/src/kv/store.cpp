#include "kv/store.h"

#include <cstring>

namespace fasa {

KvView KvStore::layer(int32_t i) const {
    const size_t values = shape_.n_bytes() / sizeof(uint16_t) / shape_.n_layer;
    return {static_cast<uint16_t*>(memory_.data()) + i * values, shape_.n_ctx, shape_.n_head_kv, shape_.head_dim};
}

void KvStore::copy(int32_t dst, int32_t src, int32_t n_tokens) {
    if (dst == src) return;
    for (int32_t i = 0; i < shape_.n_layer; ++i) {
        const KvView view = layer(i);
        const size_t n_bytes = size_t{2} * view.row_values() * n_tokens;
        for (int32_t head = 0; head < shape_.n_head_kv; ++head) {
            std::memcpy(view.row(dst, head, 0), view.row(src, head, 0), n_bytes);
        }
    }
}

}  // namespace fasa
