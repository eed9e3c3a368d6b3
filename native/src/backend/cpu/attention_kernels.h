// The two inner loops of dense attention, per instruction set. Rows are those of KvView: f16 key then value, so
// 2 * head_dim values each. Queries come scaled and rotated.
#pragma once

#include <cstdint>

#include "base/cpu.h"

namespace fasa::cpu {

inline constexpr int max_lanes = 16;     // floats in the widest vector; row lengths in scratch are padded to it
inline constexpr int kv_chunk = 512;     // positions in one task of decode, whatever the number of threads
inline constexpr int kv_tile = 64;       // positions in one step of prefill
inline constexpr int max_queries = 128;  // query rows in one task of prefill

inline int padded(int n) { return (n + max_lanes - 1) / max_lanes * max_lanes; }

// A softmax that is not finished: max and sum of exp(score - max), and the values weighted by it, [padded(head_dim)].
struct SoftmaxState {
    float max, sum;
    float* values;
};

struct AttentionKernels {
    // Decode: n_q queries [n_q][padded(head_dim)], zero-padded, over n_pos <= kv_chunk rows. Writes state[0 .. n_q).
    void (*chunk)(const float* q, int n_q, int head_dim, const uint16_t* rows, int n_pos, SoftmaxState* state);

    // Prefill: n_q <= max_queries queries, transposed and padded to qt [head_dim][padded(n_q)]; query i sees the first
    // n_visible[i] >= 1 rows, ascending. Writes out_t [head_dim][padded(n_q)], finished. n_visible is padded too.
    void (*tile)(const float* qt, int n_q, int head_dim, const uint16_t* rows, const int32_t* n_visible, float* out_t,
                 float* scratch);
};

// Floats of scratch that `tile` needs.
inline int64_t tile_scratch(int head_dim) {
    return int64_t{kv_tile} * (2 * padded(head_dim) + max_queries) + 3 * max_queries;
}

const AttentionKernels& attention_kernels(Isa isa);

namespace scalar {
extern const AttentionKernels attention;
}
namespace avx2 {
extern const AttentionKernels attention;
}
namespace avx512 {
extern const AttentionKernels attention;
}

}  // namespace fasa::cpu
