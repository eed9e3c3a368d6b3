// Where tokens stand: rotary position embedding of queries and keys, and the append to the KV cache.
#pragma once

#include <cstdint>

#include "backend/cuda/runtime.h"
#include "backend/views.h"

namespace fasa::cuda {

// For rows step->pos0 .. step->pos0 + n - 1 of sequence step->seq: q [n][n_head][head_dim] is normed, rotated and put
// in the order of the cache, in place; k [n][n_head_kv][head_dim] likewise on its way into the cache, with v (same
// shape). Angles are taken in double precision, as on the CPU, so that they are exact at any position. rest, unless it
// is nullptr, is where the rows that kv.rest would get go instead: [n_head_kv][n][row_values]. One launch. Pointers,
// kv's included, are the device's.
void rope_store(float* q, const float* k, const float* v, int n_head, const RopeView& rope, const HeadNorm& norm,
                const KvView& kv, const Step* step, int n, cudaStream_t stream, uint16_t* rest = nullptr);

}  // namespace fasa::cuda
