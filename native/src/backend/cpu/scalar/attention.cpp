// The reference of dense attention: what the fast bodies in isa/ must compute.
#include "backend/cpu/attention_kernels.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/half.h"

namespace fasa::cpu::scalar {
namespace {

float dot(const float* q, int64_t q_stride, const uint16_t* key, int head_dim) {
    float sum = 0;
    for (int d = 0; d < head_dim; ++d) sum += q[d * q_stride] * half_to_float(key[d]);
    return sum;
}

// One query over n_pos rows in two passes; values [head_dim] with a stride.
void attend_one(const float* q, int64_t stride, int head_dim, const uint16_t* rows, int n_pos, SoftmaxState& state) {
    const int64_t row_values = 2 * int64_t{head_dim};
    state.max = -std::numeric_limits<float>::infinity();
    for (int j = 0; j < n_pos; ++j) state.max = std::max(state.max, dot(q, stride, rows + j * row_values, head_dim));
    state.sum = 0;
    for (int d = 0; d < head_dim; ++d) state.values[d * stride] = 0;
    for (int j = 0; j < n_pos; ++j) {
        const uint16_t* row = rows + j * row_values;
        const float weight = std::exp(dot(q, stride, row, head_dim) - state.max);
        state.sum += weight;
        for (int d = 0; d < head_dim; ++d) state.values[d * stride] += weight * half_to_float(row[head_dim + d]);
    }
}

void chunk(const float* q, int n_q, int head_dim, const uint16_t* rows, int n_pos, SoftmaxState* state) {
    for (int i = 0; i < n_q; ++i) attend_one(q + i * padded(head_dim), 1, head_dim, rows, n_pos, state[i]);
}

void tile(const float* qt, int n_q, int head_dim, const uint16_t* rows, const int32_t* n_visible, float* out_t,
          float*) {
    const int stride = padded(n_q);
    for (int i = 0; i < n_q; ++i) {
        SoftmaxState state{0, 0, out_t + i};
        attend_one(qt + i, stride, head_dim, rows, n_visible[i], state);
        for (int d = 0; d < head_dim; ++d) out_t[d * stride + i] /= state.sum;
    }
}

}  // namespace

const AttentionKernels attention = {chunk, tile};

}  // namespace fasa::cpu::scalar
