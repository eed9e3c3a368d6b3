// fasa.h: model.
#include "base/log.h"
#include "capi/guard.h"
#include "capi/handles.h"

using namespace fasa;

namespace {

#if FASA_HAS_CUDA
std::unique_ptr<Device> make_gpu(const fasa_model_params& params) {
    std::string reason;
    if (params.plan_only && params.device_memory_max > 0 && n_visible_gpus(&reason) == 0) {
        return make_assumed_gpu(params.n_threads, params.device_memory_max);
    }
    return make_cuda_device(params.device_index, params.n_threads, params.device_memory_max);
}
#endif

// A limit of device memory asks for a GPU: it is never left aside.
std::unique_ptr<Device> make_cpu(const fasa_model_params& params, fasa_status status, const char* why) {
    if (params.device_memory_max > 0) {
        fail(status, "a limit of device memory was given, but the model would run on the CPU: %s", why);
    }
    return make_cpu_device(params.n_threads);
}

std::unique_ptr<Device> choose_device(const fasa_model_params& params) {
    std::string reason;
#if FASA_HAS_CUDA
    const int n = n_visible_gpus(&reason);
    if (n == 0 && params.plan_only && params.device_memory_max > 0) return make_gpu(params);
    fasa_model_params gpu = params;
    for (gpu.device_index = 0; gpu.device_index < n; ++gpu.device_index) {
        if (describe_gpu(gpu.device_index).supported) return make_gpu(gpu);
    }
    reason = "no GPU can be used (" + (n > 0 ? "compute capability 7.5 or newer is needed" : reason) + ")";
    constexpr fasa_status status = FASA_ERROR_DEVICE;
    constexpr fasa_log_level level = FASA_LOG_WARN;  // it was built for one
#else
    constexpr fasa_status status = FASA_ERROR_UNSUPPORTED;
    constexpr fasa_log_level level = FASA_LOG_INFO;
    reason = "this build has no CUDA backend (" FASA_CUDA_REASON ")";
#endif
    auto device = make_cpu(params, status, reason.c_str());
    if (!params.plan_only) log_message(level, "device auto: %s", reason.c_str());
    return device;
}

std::unique_ptr<Device> make_device(const fasa_model_params& params) {
    if (params.n_threads < 0 || params.n_threads > 4096) {
        fail(FASA_ERROR_ARGUMENT, "n_threads is %d, expected 0 (all usable cores) to 4096", params.n_threads);
    }
    switch (params.device) {
        case FASA_DEVICE_AUTO: {
            auto device = choose_device(params);
            if (!params.plan_only) log_message(FASA_LOG_INFO, "device auto: using %s", device->name().c_str());
            return device;
        }
        case FASA_DEVICE_CPU:
            return make_cpu(params, FASA_ERROR_ARGUMENT, "it was asked for");
        case FASA_DEVICE_CUDA:
#if FASA_HAS_CUDA
            return make_gpu(params);
#else
            fail(FASA_ERROR_UNSUPPORTED, "this build has no CUDA backend (%s): use device='cpu' or 'auto'",
                 FASA_CUDA_REASON);
#endif
    }
    fail(FASA_ERROR_ARGUMENT, "unknown device kind %d", static_cast<int>(params.device));
}

const char* scaling_name(const Model& model) {
    switch (model.h.rope_scaling) {
        case RopeScaling::linear:
            return "linear";
        case RopeScaling::yarn:
            return "yarn";
        case RopeScaling::none:
            break;
    }
    return model.rope_freqs ? "freqs" : "none";
}

}  // namespace

extern "C" {

void fasa_model_params_default(fasa_model_params* out) {
    if (out) *out = {};
}

fasa_status fasa_model_load(fasa_model** out, const fasa_gguf* file, const fasa_model_params* params) {
    return guard([&] {
        require(out, "out");
        require(file, "file");
        *out = nullptr;
        const fasa_model_params p = params ? *params : fasa_model_params{};
        auto handle = std::make_unique<fasa_model>();
        handle->model = load_model(file->file, make_device(p), {p.ignore_table, p.plan_only}, [&](float fraction) {
            return !p.progress || p.progress(fraction, p.progress_user);
        });
        handle->device_name = handle->model->device->name();
        *out = handle.release();
    });
}

void fasa_model_free(fasa_model* model) { delete model; }

void fasa_model_info_get(fasa_model_info* out, const fasa_model* handle) {
    if (!out || !handle) return;
    const Model& model = *handle->model;
    const Hparams& h = model.h;
    *out = {};
    out->arch = h.arch->name;
    out->device = handle->device_name.c_str();
    out->n_layer = h.n_layer;
    out->n_head = h.n_head;
    out->n_head_kv = h.n_head_kv;
    out->head_dim = h.head_dim;
    out->n_rot = h.n_rot;
    out->n_embd = h.n_embd;
    out->n_ff = h.n_ff;
    out->n_vocab = h.n_vocab;
    out->n_ctx_train = h.n_ctx_train;
    out->rope_freq_base = h.rope_freq_base;
    out->rope_layout = h.arch->rope_layout == RopeLayout::interleaved ? "interleaved" : "half_split";
    out->rope_scaling = scaling_name(model);
    out->n_threads = model.device->n_threads();
    out->n_params = model.n_params;
    out->n_bytes = model.n_bytes;
    out->fingerprint = model.fingerprint;
}

}  // extern "C"
