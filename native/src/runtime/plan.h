// Memory that a context will take, known before it is created.
#pragma once

#include "kv/store.h"
#include "runtime/config.h"

namespace fasa {

inline constexpr int32_t n_score_rows = 32;  // rows whose logits are held at once when scoring
inline constexpr int32_t max_n_ctx = 1 << 28;

// min(trained context, what fits now). Throws MEMORY when nothing does.
int32_t choose_n_ctx(const Model& model, const ContextConfig& config);

OpsLimits ops_limits(const Hparams& h, const ContextConfig& config);
KvShape kv_shape(const Hparams& h, const ContextConfig& config);

// Everything but the KV cache: activations, logits, workspace of selection and ops, token history.
size_t scratch_bytes(const Model& model, const ContextConfig& config);

fasa_plan make_plan(const Model& model, const ContextConfig& config);

}  // namespace fasa
