// Small steps of the methods that FASA is compared with. See the ops of the same names in backend.h; every sum is added
// in the order of the CPU backend.
#pragma once

#include <cstdint>

#include "backend/cuda/runtime.h"
#include "backend/views.h"

namespace fasa::cuda {

void clear_scores(float* scores, int n_set, int64_t n_ctx, int32_t first, int32_t n, cudaStream_t stream);
void keep_listed(float* scores, int64_t n_ctx, int32_t n_pos, const Selection& selection, cudaStream_t stream);
void average_pages(float* scores, int n_set, int64_t n_ctx, int32_t page, int32_t n_pos, cudaStream_t stream);
void expand_pages(Selection& selection, int32_t page, int32_t n_pos, cudaStream_t stream);
void bound_queries(float* bounds, int n_set, const float* q, int n_head, int head_dim, cudaStream_t stream);

}  // namespace fasa::cuda
