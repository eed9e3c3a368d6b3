// The reference of observation: what the fast bodies in isa/ must compute.
#include <algorithm>
#include <cmath>

#include "backend/cpu/observe_kernels.h"
#include "base/half.h"

namespace fasa::cpu::scalar {
namespace {

void widen(const KvHead& kv, const int32_t* positions, int first, int n, float* keys) {
    for (int j = 0; j < n; ++j) {
        const int64_t pos = positions ? positions[j] : first + j;
        float* key = keys + int64_t{j} * key_stride(kv.head_dim);
        for (int d = 0; d < kv.n_dom; ++d) key[d] = half_to_float(kv.dom[pos * kv.n_dom + d]);
        for (int d = 0; d < kv.n_rest(); ++d) key[kv.n_dom + d] = half_to_float(kv.rest[pos * kv.row_values() + d]);
    }
}

void score(const float* keys, const float* qt, int n, int n_q, int head_dim, float* scores) {
    for (int j = 0; j < n; ++j) {
        const float* key = keys + int64_t{j} * key_stride(head_dim);
        for (int i = 0; i < n_q; ++i) {
            float sum = 0;
            for (int d = 0; d < head_dim; ++d) sum += key[d] * qt[d * n_q + i];
            scores[j * n_q + i] = sum;
        }
    }
}

void fold(const float* scores, int n, int n_q, float* top, float* sum) {
    for (int i = 0; i < n_q; ++i) {
        for (int j = 0; j < n; ++j) {
            const float s = scores[j * n_q + i], new_top = std::max(top[i], s);
            if (std::isinf(new_top)) continue;
            sum[i] = sum[i] * std::exp(top[i] - new_top) + std::exp(s - new_top);
            top[i] = new_top;
        }
    }
}

void weigh(const float* scores, int n, int n_q, const float* log_sum, float* weight) {
    for (int j = 0; j < n; ++j) {
        weight[j] = 0;
        for (int i = 0; i < n_q; ++i) weight[j] += std::exp(scores[j * n_q + i] - log_sum[i]);
    }
}

}  // namespace

const ObserveKernels observe = {widen, score, fold, weigh};

}  // namespace fasa::cpu::scalar
