// Dense causal attention of the CPU backend.
#pragma once

#include "backend/backend.h"
#include "backend/cpu/attention_kernels.h"
#include "base/team.h"

namespace fasa::cpu {

class Attention {
   public:
    Attention(Team& team, const OpsLimits& limits);

    // y, q [rows.n][n_head][head_dim]; scores are multiplied by scale.
    void run(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows);

    static size_t scratch_bytes(const OpsLimits& limits, int n_threads);

   private:
    struct Scratch {
        float* tiles;         // [n_threads] of tile_values
        float* q;             // decode: [n_head][padded(head_dim)]
        float* values;        // decode: [n_chunk][n_head][padded(head_dim)]
        SoftmaxState* state;  // decode: [n_chunk][n_head]
    };
    static Scratch take(Arena& arena, const OpsLimits& limits, int n_threads);

    void decode(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq, int32_t pos);
    void prefill(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows);

    const AttentionKernels& kernels_;
    Team& team_;
    Buffer memory_;
    Scratch scratch_;
};

}  // namespace fasa::cpu
