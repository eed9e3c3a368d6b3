// Small steps of the methods that FASA is compared with. See the ops of the same names in backend.h.
#pragma once

#include <cstdint>

#include "backend/views.h"

namespace fasa::cpu {

void clear_scores(float* scores, int n_set, int64_t n_ctx, int32_t first, int32_t n);
void keep_listed(float* scores, int64_t n_ctx, int32_t n_pos, const Selection& selection);
void average_pages(float* scores, int n_set, int64_t n_ctx, int32_t page, int32_t n_pos);
void expand_pages(Selection& selection, int32_t page, int32_t n_pos);
void bound_queries(float* bounds, int n_set, const float* q, int n_head, int head_dim);

}  // namespace fasa::cpu
