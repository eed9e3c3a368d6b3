// The inner loops of observing attention without computing it, per instruction set: how much weight queries give to
// which keys. Queries come scaled and transposed as in prefill, qt [head_dim][n_q], n_q a multiple of max_lanes.
#pragma once

#include "backend/cpu/attention_kernels.h"

namespace fasa::cpu {

// Floats from one key of a tile to the next: the last store of a split key may reach past head_dim.
inline int key_stride(int head_dim) { return padded(head_dim) + max_lanes; }

struct ObserveKernels {
    // keys [n][key_stride] as floats: those at `positions`, or from position `first` on when that is nullptr.
    void (*widen)(const KvHead& kv, const int32_t* positions, int first, int n, float* keys);
    // scores [n][n_q] = keys · qt
    void (*score)(const float* keys, const float* qt, int n, int n_q, int head_dim, float* scores);
    // Takes n more scores of every query into its running maximum and sum of exp(score - maximum); -infinity counts
    // for nothing. top [n_q] starts at -infinity, sum [n_q] at 0.
    void (*fold)(const float* scores, int n, int n_q, float* top, float* sum);
    // weight[j] = sum over i of exp(scores[j][i] - log_sum[i]); a log_sum of infinity leaves that query out.
    void (*weigh)(const float* scores, int n, int n_q, const float* log_sum, float* weight);
};

const ObserveKernels& observe_kernels(Isa isa);

namespace scalar {
extern const ObserveKernels observe;
}
namespace avx2 {
extern const ObserveKernels observe;
}
namespace avx512 {
extern const ObserveKernels observe;
}

}  // namespace fasa::cpu
