#include "runtime/plan.h"

#include <algorithm>

#include "base/cpu.h"
#include "base/error.h"
#include "model/forward.h"

namespace fasa {
namespace {

// Room to shorten a batch so that the last one is not left with fewer than n_rows_alike.
constexpr int32_t min_n_batch = 2 * n_rows_alike;
constexpr int32_t default_n_batch = 512, max_n_batch = 16384, max_n_seq = 1024, max_n_ctx = 1 << 28;

// The weights are mapped: whatever part of them is cached counts as available, but decoding needs all of them resident.
uint64_t available_beside_weights(const Model& model) {
    const uint64_t available = memory_available();
    return available > model.n_bytes ? available - model.n_bytes : 0;
}

uint64_t context_bytes(const Model& model, fasa_context_params params, int32_t n_ctx) {
    params.n_ctx = n_ctx;
    return kv_shape(model.h, params).n_bytes() + scratch_bytes(model, params);
}

// Largest n_ctx that fits in the available bytes, up to limit; 0 if none does.
int32_t largest_n_ctx(const Model& model, const fasa_context_params& params, uint64_t available, int32_t limit) {
    int32_t low = 0, high = limit;
    while (low < high) {
        const int32_t middle = high - (high - low) / 2;
        if (context_bytes(model, params, middle) <= available) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

void check_range(const char* name, int32_t value, int32_t max) {
    if (value < 0 || value > max)
        fail(FASA_ERROR_ARGUMENT, "%s is %d, expected 0 (the default) to %d", name, value, max);
}

}  // namespace

fasa_context_params resolve(const Model& model, fasa_context_params params) {
    check_range("n_ctx", params.n_ctx, max_n_ctx);
    check_range("n_batch", params.n_batch, max_n_batch);
    check_range("n_seq", params.n_seq, max_n_seq);
    if (params.n_seq == 0) params.n_seq = 1;
    if (params.n_batch == 0) params.n_batch = default_n_batch;
    params.n_batch = std::max(params.n_batch, min_n_batch);
    if (params.n_ctx == 0) {
        const uint64_t available = available_beside_weights(model);
        params.n_ctx = largest_n_ctx(model, params, available, model.h.n_ctx_train);
        if (params.n_ctx == 0) {
            fail(FASA_ERROR_MEMORY,
                 "out of memory: not even one token of context fits in the %.1f MiB left beside the weights",
                 static_cast<double>(available) / 0x1p20);
        }
    }
    params.n_batch = std::min(params.n_batch, params.n_ctx);
    return params;
}

OpsLimits ops_limits(const Hparams& h, const fasa_context_params& params) {
    const int64_t n_in_max = std::max({h.n_embd, h.n_ff, h.n_head * h.head_dim});
    return {params.n_batch, n_in_max, h.n_head, h.n_head_kv, h.head_dim, params.n_ctx};
}

KvShape kv_shape(const Hparams& h, const fasa_context_params& params) {
    return {h.n_layer, h.n_head_kv, h.head_dim, params.n_ctx, params.n_seq};
}

size_t scratch_bytes(const Model& model, const fasa_context_params& params) {
    Arena arena;
    Activations::take(arena, model.h, params.n_batch);
    arena.take<float>(size_t{1} * std::min(n_score_rows, params.n_batch) * model.h.n_vocab);
    arena.take<int32_t>(size_t{1} * params.n_ctx * params.n_seq);
    return arena.used() + model.device->ops_bytes(ops_limits(model.h, params));
}

fasa_plan make_plan(const Model& model, const fasa_context_params& params) {
    fasa_plan plan = {};
    plan.n_ctx = params.n_ctx;
    plan.weights_bytes = model.n_bytes;
    plan.kv_bytes = kv_shape(model.h, params).n_bytes();
    plan.scratch_bytes = scratch_bytes(model, params);
    plan.available_bytes = available_beside_weights(model);
    plan.n_ctx_max = largest_n_ctx(model, params, plan.available_bytes, max_n_ctx);
    plan.fits = plan.kv_bytes + plan.scratch_bytes <= plan.available_bytes;
    return plan;
}

}  // namespace fasa
