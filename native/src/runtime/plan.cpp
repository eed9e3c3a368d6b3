#include "runtime/plan.h"

#include <algorithm>

#include "base/cpu.h"
#include "base/error.h"

namespace fasa {
namespace {

// The weights are mapped: whatever part of them is cached counts as available, but decoding needs all of them resident.
uint64_t available_beside_weights(const Model& model) {
    const uint64_t available = memory_available();
    return available > model.n_bytes ? available - model.n_bytes : 0;
}

uint64_t scratch_bytes(const Model& model, const ContextConfig& config) {
    return device_scratch(model, config, nullptr).n_bytes + host_scratch(model, config, nullptr).n_bytes +
           model.device->ops_bytes(ops_limits(model.h, config));
}

uint64_t context_bytes(const Model& model, ContextConfig config, int32_t n_ctx) {
    config.n_ctx = n_ctx;
    return kv_shape(model.h, config).n_bytes() + scratch_bytes(model, config);
}

// Largest n_ctx that fits in the available bytes, up to limit; 0 if none does.
int32_t largest_n_ctx(const Model& model, const ContextConfig& config, uint64_t available, int32_t limit) {
    int32_t low = 0, high = limit;
    while (low < high) {
        const int32_t middle = high - (high - low) / 2;
        if (context_bytes(model, config, middle) <= available) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

}  // namespace

int32_t choose_n_ctx(const Model& model, const ContextConfig& config) {
    const uint64_t available = available_beside_weights(model);
    const int32_t n_ctx = largest_n_ctx(model, config, available, model.h.n_ctx_train);
    if (n_ctx == 0) {
        fail(FASA_ERROR_MEMORY,
             "out of memory: not even one token of context fits in the %.1f MiB left beside the weights",
             static_cast<double>(available) / 0x1p20);
    }
    return n_ctx;
}

OpsLimits ops_limits(const Hparams& h, const ContextConfig& config) {
    const int64_t n_in_max = std::max({h.n_embd, h.n_ff, h.n_head * h.head_dim});
    const int64_t n_out_max = std::max({h.n_vocab, h.n_ff, h.n_head * h.head_dim});
    return {config.n_batch, n_in_max, h.n_head, h.n_head_kv, h.head_dim, config.n_ctx, n_in_max * n_out_max};
}

KvShape kv_shape(const Hparams& h, const ContextConfig& config) {
    return {h.n_layer,    h.n_head_kv,  h.head_dim,     config.n_ctx,
            config.n_seq, config.n_dom, config.n_dense, config.dom_type};
}

DeviceScratch device_scratch(const Model& model, const ContextConfig& config, void* base) {
    Arena arena(base);
    DeviceScratch scratch;
    scratch.activations = Activations::take(arena, model.h, config.n_batch);
    scratch.select = SelectScratch::take(arena, select_shape(model.h, config));
    scratch.n_bytes = arena.used();
    return scratch;
}

HostScratch host_scratch(const Model& model, const ContextConfig& config, void* base) {
    Arena arena(base);
    HostScratch scratch;
    scratch.logits = arena.take<float>(size_t{1} * std::min(n_score_rows, config.n_batch) * model.h.n_vocab);
    scratch.history = arena.take<int32_t>(size_t{1} * config.n_ctx * config.n_seq);
    scratch.n_bytes = arena.used();
    return scratch;
}

fasa_plan make_plan(const Model& model, const ContextConfig& config) {
    fasa_plan plan = {};
    plan.n_ctx = config.n_ctx;
    plan.weights_bytes = model.n_bytes;
    plan.kv_bytes = kv_shape(model.h, config).n_bytes();
    plan.kv_dom_bytes = kv_shape(model.h, config).dom_bytes();
    plan.scratch_bytes = scratch_bytes(model, config);
    plan.available_bytes = available_beside_weights(model);
    plan.n_ctx_max = largest_n_ctx(model, config, plan.available_bytes, max_n_ctx);
    plan.fits = plan.kv_bytes + plan.scratch_bytes <= plan.available_bytes;
    return plan;
}

}  // namespace fasa
