// The inner loops of attention, per instruction set. Keys and values lie as in KvHead, half precision; queries come
// rotated, scaled, and with their dims in the order of the cache.
#pragma once

#include <cstdint>

#include "backend/views.h"
#include "base/cpu.h"

namespace fasa::cpu {

inline constexpr int max_lanes = 16;     // floats in the widest vector; row lengths in scratch are padded to it
inline constexpr int kv_chunk = 512;     // positions in one task of decode, whatever the number of threads
inline constexpr int kv_tile = 64;       // positions in one step of prefill
inline constexpr int max_queries = 128;  // query rows in one task of prefill

inline int padded(int n) { return (n + max_lanes - 1) / max_lanes * max_lanes; }
// A query of decode: its dominant dims, zero-padded, then the others, zero-padded.
inline int query_stride(int n_dom, int head_dim) { return padded(n_dom) + padded(head_dim - n_dom); }

// A softmax that is not finished: max and sum of exp(score - max), and the values weighted by it, [padded(head_dim)].
struct SoftmaxState {
    float max, sum;
    float* values;
};

struct AttentionKernels {
    // Decode: n_q queries [n_q][query_stride] over n_pos rows: those at `positions`, or the first n_pos of the cache
    // when that is nullptr. Writes state[0 .. n_q).
    void (*chunk)(const float* q, int n_q, const KvHead& kv, const int32_t* positions, int n_pos, SoftmaxState* state);

    // Prefill: n_q <= max_queries queries, transposed and padded to qt [head_dim][padded(n_q)]; query i sees the first
    // n_visible[i] >= 1 rows, ascending. Writes out_t [head_dim][padded(n_q)], finished. n_visible is padded too.
    void (*tile)(const float* qt, int n_q, const KvHead& kv, const int32_t* n_visible, float* out_t, float* scratch);

    // scores[j] = q · key of position first + j, n_pos of them; q [query_stride], of which all dims count when
    // whole_key, else the dominant ones alone: the first n_dom, or those that are coded, with their coded keys.
    void (*scores)(const float* q, const KvHead& kv, int first, int n_pos, bool whole_key, float* scores);
};

// Floats of scratch that `tile` needs.
inline int64_t tile_scratch(int head_dim) {
    return int64_t{kv_tile} * (2 * (padded(head_dim) + max_lanes) + max_queries) + 3 * max_queries;
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
