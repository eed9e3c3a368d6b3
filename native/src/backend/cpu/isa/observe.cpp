// Observation with vectors: lanes are queries, as in prefill.
#include "backend/cpu/isa/product.h"
#include "backend/cpu/observe_kernels.h"

namespace fasa::cpu::FASA_ISA {
namespace {

void widen(const KvHead& kv, const int32_t* positions, int first, int n, float* keys) {
    for (int j = 0; j < n; ++j) {
        const int64_t pos = positions ? positions[j] : int64_t{first} + j;
        const uint16_t* dom = kv.dom + pos * kv.n_dom;
        const uint16_t* rest = kv.rest + pos * kv.row_values();
        float* key = keys + int64_t{j} * key_stride(kv.head_dim);
        for (int d = 0; d < kv.n_dom; d += LANES) store(key + d, load_half_any(dom + d, kv.n_dom - d));
        for (int d = 0; d < kv.n_rest(); d += LANES) {
            store(key + kv.n_dom + d, load_half_any(rest + d, kv.n_rest() - d));
        }
    }
}

void score(const float* keys, const float* qt, int n, int n_q, int head_dim, float* scores) {
    product(keys, key_stride(head_dim), 1, qt, n, head_dim, n_q, nullptr, scores);
}

// A maximum of -infinity is replaced by the lowest finite number, so that nothing is infinity minus infinity.
void fold(const float* scores, int n, int n_q, float* top, float* sum) {
    const vf lowest = set1(-__FLT_MAX__);
    for (int i = 0; i < n_q; i += LANES) {
        const vf old_top = load(top + i);
        vf new_top = old_top;
        for (int j = 0; j < n; ++j) new_top = max(new_top, load(scores + int64_t{j} * n_q + i));
        const vf base = max(new_top, lowest);
        vf total = mul(load(sum + i), exp(sub(old_top, base)));
        for (int j = 0; j < n; ++j) total = add(total, exp(sub(load(scores + int64_t{j} * n_q + i), base)));
        store(top + i, new_top);
        store(sum + i, total);
    }
}

void weigh(const float* scores, int n, int n_q, const float* log_sum, float* weight) {
    for (int j = 0; j < n; ++j) {
        vf sum = zero();
        for (int i = 0; i < n_q; i += LANES) {
            sum = add(sum, exp(sub(load(scores + int64_t{j} * n_q + i), load(log_sum + i))));
        }
        weight[j] = reduce_add(sum);
    }
}

}  // namespace

extern const ObserveKernels observe;
const ObserveKernels observe = {widen, score, fold, weigh};

}  // namespace fasa::cpu::FASA_ISA
