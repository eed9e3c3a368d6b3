// What selection of positions needs to know beyond scores: the weights that queries give, and summaries of keys.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/topk.h"

namespace fasa::cuda {

inline constexpr int n_key_part = 64;  // parts of a head's positions whose keys are summed up apart

// Memory of one of these ops at a time, on the device.
struct ObserveScratch {
    float2* softmax = nullptr;  // of tiles of queries: maximum and sum of exp(score - maximum) over some keys
    float* key_sum = nullptr;   // [n_head_kv][n_key_part][head_dim]
    int32_t n_batch = 0;        // rows whose softmax fits

    static ObserveScratch take(Arena& arena, const OpsLimits& limits);
};

// See the ops of the same names in backend.h. All sums are added in the same order every time.
void attention_mass(float* mass, int n_set, const float* q, int n_head, float scale, const KvView& kv, const Rows& rows,
                    const ObserveScratch& scratch, cudaStream_t stream);
// `past` says whose row it is; its positions do not matter.
void selected_mass(float* mass, const float* q, int n_head, float scale, const KvView& kv, const Past& past,
                   const Selection& selection, cudaStream_t stream);
// first_page < 0: the page of the last position alone.
void page_bounds(uint16_t* bounds, const KvView& kv, const Past& past, int32_t page, int32_t first_page,
                 PageBounds kind, cudaStream_t stream);
void key_similarity(float* similarity, const KvView& kv, const Past& past, const ObserveScratch& scratch,
                    cudaStream_t stream);

}  // namespace fasa::cuda
