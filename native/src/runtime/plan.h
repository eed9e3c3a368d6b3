// Memory that a context will take, known before it is created.
#pragma once

#include "kv/store.h"
#include "model/forward.h"
#include "runtime/config.h"

namespace fasa {

inline constexpr int32_t n_score_rows = 32;  // rows whose logits are held at once when scoring
inline constexpr int32_t max_n_ctx = 1 << 28;

// max_n_ctx, or less: rows of a split cache go between device and host for several KV heads at once, in copies whose
// stride, a head's rows, is less than 2 GiB.
int32_t n_ctx_limit(const Model& model, const ContextConfig& config);

// min(trained context, what fits now). Throws MEMORY when nothing does.
int32_t choose_n_ctx(const Model& model, ContextConfig config);

OpsLimits ops_limits(const Hparams& h, const ContextConfig& config);
KvShape kv_shape(const Hparams& h, const ContextConfig& config);

// What a context works in on the device. base nullptr: only measured.
struct DeviceScratch {
    Activations activations;
    SelectScratch select;
    size_t n_bytes;
};
DeviceScratch device_scratch(const Model& model, const ContextConfig& config, void* base);
size_t logits_bytes(const Model& model, const ContextConfig& config);  // float [min(n_score_rows, n_batch)][n_vocab]
size_t history_bytes(const ContextConfig& config);                     // int32 [n_seq][n_ctx]

fasa_plan make_plan(const Model& model, const ContextConfig& config);
// Throws MEMORY that names what is missing, and what would fit.
void check_plan(const fasa_plan& plan);

}  // namespace fasa
