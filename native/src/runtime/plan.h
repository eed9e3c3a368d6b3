// Memory that a context will take, known before it is created.
#pragma once

#include "kv/store.h"
#include "model/model.h"

namespace fasa {

inline constexpr int32_t n_score_rows = 32;  // rows whose logits are held at once when scoring

// The params with every zero replaced by its default. n_ctx 0: min(trained context, what fits).
fasa_context_params resolve(const Model& model, fasa_context_params params);

OpsLimits ops_limits(const Hparams& h, const fasa_context_params& params);
KvShape kv_shape(const Hparams& h, const fasa_context_params& params);

// Everything but the KV cache: activations, logits, workspace of the ops, token history.
size_t scratch_bytes(const Model& model, const fasa_context_params& params);

// params must be resolved.
fasa_plan make_plan(const Model& model, const fasa_context_params& params);

}  // namespace fasa
