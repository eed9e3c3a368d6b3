#include "runtime/plan.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>

#include "base/cpu.h"
#include "base/error.h"

namespace fasa {
namespace {

constexpr int32_t n_ctx_step = 64;

double mib(uint64_t n_bytes) { return static_cast<double>(n_bytes) / 0x1p20; }

uint64_t missing(uint64_t needed, uint64_t available) { return needed > available ? needed - available : 0; }

// The parts, without what is available.
fasa_plan measure(const Model& model, ContextConfig config) {
    config.n_batch = std::min(config.n_batch_max, config.n_ctx);
    const Device& device = *model.device;
    const OpsBytes ops = device.ops_bytes(ops_limits(model.h, config));
    const KvShape kv = kv_shape(model.h, config);
    fasa_plan p = {};
    p.n_ctx = config.n_ctx;
    p.kv = config.host_rest ? FASA_KV_SPLIT : FASA_KV_DEVICE;
    p.weights_device_bytes = model.memory_bytes;
    p.kv_device_bytes = kv.n_bytes() - kv.host_bytes();
    p.kv_host_bytes = kv.host_bytes();
    p.kv_dom_bytes = kv.dom_bytes();
    p.scratch_device_bytes = device_scratch(model, config, nullptr).n_bytes + kv.order_bytes() + ops.device +
                             selector_bytes(config.select, select_shape(model.h, config));
    p.row_cache_bytes = ops.row_cache;
    p.scratch_host_bytes = logits_bytes(model, config) + history_bytes(config) + ops.host;
    p.system_device_bytes = device.system_bytes() + ops.runs;
    if (!device.has_own_memory()) {
        // All of the file has to be resident while decoding, whatever part of it happens to be cached.
        p.weights_host_bytes = model.n_bytes + std::exchange(p.weights_device_bytes, 0);
        p.kv_host_bytes += std::exchange(p.kv_device_bytes, 0);
        p.scratch_host_bytes += std::exchange(p.scratch_device_bytes, 0);
    }
    p.device_bytes = p.weights_device_bytes + p.kv_device_bytes + p.scratch_device_bytes + p.system_device_bytes;
    p.host_bytes = p.weights_host_bytes + p.kv_host_bytes + p.scratch_host_bytes;
    return p;
}

// For all that a plan counts: what the model holds is not to be found again. A GPU's host memory is page-locked, and
// cannot make room for others later: an eighth of what there is stays theirs.
struct Available {
    uint64_t device = 0, host = memory_available();

    explicit Available(const Model& model) {
        const Device& d = *model.device;
        if (!d.has_own_memory()) return;
        device = d.memory_available() + model.memory.n_bytes();
        host -= host / 8;
    }
    bool suffices(const fasa_plan& p) const { return p.device_bytes <= device && p.host_bytes <= host; }
};

// Largest n_ctx that fits, up to limit; 0 if none does. Below the limit it is rounded down to a multiple of n_ctx_step,
// unless it is less than that: faster kernels are taken where rows of n_ctx values begin at whole vectors.
int32_t largest_n_ctx(const Model& model, ContextConfig config, const Available& available, int32_t limit) {
    int32_t low = 0, high = std::min(limit, n_ctx_limit(model, config));
    while (low < high) {
        config.n_ctx = high - (high - low) / 2;
        if (available.suffices(measure(model, config))) {
            low = config.n_ctx;
        } else {
            high = config.n_ctx - 1;
        }
    }
    return low < limit && low >= n_ctx_step ? low / n_ctx_step * n_ctx_step : low;
}

}  // namespace

int32_t n_ctx_limit(const Model& model, const ContextConfig& config) {
    const KvShape kv = kv_shape(model.h, config);
    if (!config.host_rest || !model.device->has_own_memory() || kv.n_split() == 0) return max_n_ctx;
    const int64_t row_bytes = int64_t{sizeof(uint16_t)} * kv.host_row_values();
    return static_cast<int32_t>(std::min<int64_t>(std::numeric_limits<int32_t>::max() / row_bytes, max_n_ctx));
}

int32_t choose_n_ctx(const Model& model, ContextConfig config) {
    const int32_t n_ctx = largest_n_ctx(model, config, Available(model), model.h.n_ctx_train);
    if (n_ctx > 0) return n_ctx;
    config.n_ctx = 1;
    check_plan(make_plan(model, config));
    return config.n_ctx;
}

OpsLimits ops_limits(const Hparams& h, const ContextConfig& config) {
    const int64_t n_in_max = std::max({h.n_embd, h.n_ff, h.n_head * h.head_dim});
    const KvShape kv = kv_shape(h, config);
    const int64_t n_out_max = std::max({h.n_vocab, h.n_ff, h.n_head * h.head_dim});
    return {config.n_batch,
            n_in_max,
            h.n_head,
            h.n_head_kv,
            h.head_dim,
            config.n_ctx,
            n_in_max * n_out_max,
            kv.host_row_values(),
            h.n_layer,
            config.host_rest ? static_cast<int32_t>(kv.n_split()) : 0,
            config.n_cache_row,
            config.n_seq};
}

KvShape kv_shape(const Hparams& h, const ContextConfig& config) {
    return {h.n_layer,    h.n_head_kv,    h.head_dim,      config.n_ctx,    config.n_seq,
            config.n_dom, config.n_dense, config.dom_type, config.host_rest};
}

DeviceScratch device_scratch(const Model& model, const ContextConfig& config, void* base) {
    Arena arena(base);
    DeviceScratch scratch;
    scratch.activations = Activations::take(arena, model.h, config.n_batch);
    scratch.select = SelectScratch::take(arena, select_shape(model.h, config));
    scratch.n_bytes = arena.used();
    return scratch;
}

size_t logits_bytes(const Model& model, const ContextConfig& config) {
    return sizeof(float) * std::min(n_score_rows, config.n_batch) * static_cast<size_t>(model.h.n_vocab);
}

size_t history_bytes(const ContextConfig& config) {
    return sizeof(int32_t) * static_cast<size_t>(config.n_ctx) * static_cast<size_t>(config.n_seq);
}

fasa_plan make_plan(const Model& model, const ContextConfig& config) {
    const Available available(model);
    fasa_plan plan = measure(model, config);
    plan.n_ctx_max = largest_n_ctx(model, config, available, max_n_ctx);
    plan.device_available = available.device;
    plan.host_available = available.host;
    plan.device_missing = missing(plan.device_bytes, plan.device_available);
    plan.host_missing = missing(plan.host_bytes, plan.host_available);
    plan.fits = available.suffices(plan);
    if (plan.fits)
        plan.n_ctx_max = std::max(plan.n_ctx_max, plan.n_ctx);  // though that may be no multiple of n_ctx_step
    return plan;
}

void check_plan(const fasa_plan& p) {
    if (p.fits) return;
    const bool on_device = p.device_missing > 0;
    std::string parts;
    auto add = [&](const char* name, uint64_t n_bytes) {
        char text[64];
        std::snprintf(text, sizeof text, "%s%s %.1f", parts.empty() ? "" : ", ", name, mib(n_bytes));
        if (n_bytes > 0) parts += text;
    };
    add("weights", on_device ? p.weights_device_bytes : p.weights_host_bytes);
    add("KV cache", on_device ? p.kv_device_bytes : p.kv_host_bytes);
    add("scratch", on_device ? p.scratch_device_bytes : p.scratch_host_bytes);
    if (on_device) add("CUDA itself", p.system_device_bytes);
    const uint64_t n_missing = on_device ? p.device_missing : p.host_missing;
    fail(FASA_ERROR_MEMORY,
         "out of memory: with a context of %d token%s%s, %.1f MiB of %s memory are needed (%s), but %.1f MiB are "
         "available: "
         "%llu bytes are missing; %s",
         p.n_ctx, p.n_ctx == 1 ? "" : "s", p.kv == FASA_KV_SPLIT ? " and a KV cache split between device and host" : "",
         mib(on_device ? p.device_bytes : p.host_bytes), on_device ? "device" : "host", parts.c_str(),
         mib(on_device ? p.device_available : p.host_available), static_cast<unsigned long long>(n_missing),
         p.n_ctx_max > 0 ? ("n_ctx = " + std::to_string(p.n_ctx_max) + " would fit").c_str() : "no n_ctx would fit");
}

}  // namespace fasa
