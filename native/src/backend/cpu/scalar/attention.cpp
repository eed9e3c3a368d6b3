// The reference of attention: what the fast bodies in isa/ must compute.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/attention_kernels.h"
#include "base/half.h"

namespace fasa::cpu::scalar {
namespace {

const uint16_t* row_of(const KvHead& kv, int64_t pos) { return kv.rest + pos * kv.row_values(); }

// Dims [0, n_dom) of q are at q[d * stride], the others from q[rest * stride].
float dot(const float* q, int64_t stride, int64_t rest, const KvHead& kv, int64_t pos) {
    float sum = 0;
    for (int d = 0; d < kv.n_dom; ++d) sum += q[d * stride] * half_to_float(kv.dom[pos * kv.n_dom + d]);
    for (int d = 0; d < kv.n_rest(); ++d) sum += q[(rest + d) * stride] * half_to_float(row_of(kv, pos)[d]);
    return sum;
}

// One query over n_pos rows in two passes; values [head_dim] with a stride.
void attend_one(const float* q, int64_t stride, int64_t rest, const KvHead& kv, const int32_t* positions, int n_pos,
                SoftmaxState& state) {
    const auto position = [&](int j) { return int64_t{positions ? positions[j] : j}; };
    state.max = -std::numeric_limits<float>::infinity();
    for (int j = 0; j < n_pos; ++j) state.max = std::max(state.max, dot(q, stride, rest, kv, position(j)));
    state.sum = 0;
    for (int d = 0; d < kv.head_dim; ++d) state.values[d * stride] = 0;
    for (int j = 0; j < n_pos; ++j) {
        const uint16_t* value = row_of(kv, position(j)) + kv.n_rest();
        const float weight = std::exp(dot(q, stride, rest, kv, position(j)) - state.max);
        state.sum += weight;
        for (int d = 0; d < kv.head_dim; ++d) state.values[d * stride] += weight * half_to_float(value[d]);
    }
}

void chunk(const float* q, int n_q, const KvHead& kv, const int32_t* positions, int n_pos, SoftmaxState* state) {
    const int stride = query_stride(kv.n_dom, kv.head_dim);
    for (int i = 0; i < n_q; ++i) attend_one(q + i * stride, 1, padded(kv.n_dom), kv, positions, n_pos, state[i]);
}

void tile(const float* qt, int n_q, const KvHead& kv, const int32_t* n_visible, float* out_t, float*) {
    const int stride = padded(n_q);
    for (int i = 0; i < n_q; ++i) {
        SoftmaxState state{0, 0, out_t + i};
        attend_one(qt + i, stride, kv.n_dom, kv, nullptr, n_visible[i], state);
        for (int d = 0; d < kv.head_dim; ++d) out_t[d * stride + i] /= state.sum;
    }
}

int code_at(const KeyCodes& codes, int64_t pos, int d) {
    const uint8_t* row = codes.code + pos * codes.row_bytes();
    if (codes.type == DomType::q4) return (row[d / 2] >> (d % 2 * 4) & 15) - 8;
    return static_cast<int8_t>(row[d]);
}

void scores(const float* q, const KvHead& kv, int first, int n_pos, bool whole_key, float* out) {
    if (kv.codes.n > 0 && !whole_key) {
        for (int j = 0; j < n_pos; ++j) {
            const int64_t pos = first + j;
            float sum = 0;
            for (int d = 0; d < kv.codes.n; ++d) sum += q[d] * static_cast<float>(code_at(kv.codes, pos, d));
            out[j] = sum * half_to_float(kv.codes.scale[pos]);
        }
        return;
    }
    const float* rest = q + padded(kv.n_dom);
    for (int j = 0; j < n_pos; ++j) {
        const int64_t pos = first + j;
        float sum = 0;
        for (int d = 0; d < kv.n_dom; ++d) sum += q[d] * half_to_float(kv.dom[pos * kv.n_dom + d]);
        for (int d = 0; whole_key && d < kv.n_rest(); ++d) sum += rest[d] * half_to_float(row_of(kv, pos)[d]);
        out[j] = sum;
    }
}

}  // namespace

const AttentionKernels attention = {chunk, tile, scores};

}  // namespace fasa::cpu::scalar
