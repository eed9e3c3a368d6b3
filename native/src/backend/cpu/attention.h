// Attention of the CPU backend: over everything, over selected positions, and scores without values.
#pragma once

#include "backend/backend.h"
#include "backend/cpu/attention_kernels.h"
#include "base/team.h"

namespace fasa::cpu {

class Attention {
   public:
    Attention(Team& team, const OpsLimits& limits);

    // See the ops of the same names in backend.h.
    void dense(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows);
    void selected(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq, const Selection& s);
    void scores(float* scores, const float* q, int n_q, const KvView& kv, int32_t seq, int32_t n_pos, bool whole_key);

    static size_t scratch_bytes(const OpsLimits& limits, int n_threads);

   private:
    struct Scratch {
        float* tiles;         // [n_threads] of tile_values
        float* q;             // decode: [n_head][query_stride]; room for one query of twice the dims, page bounds' keys
        float* values;        // decode: [n_chunk][n_head][padded(head_dim)]
        SoftmaxState* state;  // decode: [n_chunk][n_head]
    };
    static Scratch take(Arena& arena, const OpsLimits& limits, int n_threads);

    void decode(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq, int32_t n_pos,
                const Selection* selection);
    void prefill(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows);
    // Queries as the kernels want them, into scratch_.q.
    void lay_out(const float* q, int n_q, float scale, const KvView& kv);

    const AttentionKernels& kernels_;
    Team& team_;
    Buffer memory_;
    Scratch scratch_;
};

}  // namespace fasa::cpu
