// fasa.h: library.
#include <cstdio>
#include <string>

#include "backend/backend.h"
#include "base/cpu.h"
#include "base/dtype.h"
#include "base/log.h"
#include "capi/guard.h"
#include "model/hparams.h"

namespace fasa {
namespace {

thread_local char error_text[2048];  // a longer text is cut: keeping it must not allocate

// What does not change while the process runs.
fasa_build_info fixed_build_info() {
    fasa_build_info info = {};
    info.version = FASA_VERSION;
#if defined(__clang__)
    info.compiler = "clang " __clang_version__;
#else
    info.compiler = "gcc " __VERSION__;
#endif
    info.cuda = FASA_CUDA_BUILT;
    info.cuda_reason = FASA_CUDA_REASON;
    return info;
}

// When FASA_CPU names what cannot run, the reason says so, and whatever needs the processor fails with the same text.
void add_cpu(fasa_build_info& info) {
    info.cpu_name = processor().model.c_str();
    info.n_cores = processor().n_cores;
    info.cpu_isa_built = built_isas().c_str();
    try {
        const CpuInfo& cpu = cpu_info();
        info.cpu_isa = cpu.name.c_str();
        info.cpu_isa_reason = cpu.reason.c_str();
    } catch (const std::exception& error) {
        static thread_local std::string reason;
        reason = error.what();
        info.cpu_isa = "none";
        info.cpu_isa_reason = reason.c_str();
    }
}

}  // namespace

fasa_status report(fasa_status status, const char* text) noexcept {
    std::snprintf(error_text, sizeof error_text, "%s", text);
    return status;
}

}  // namespace fasa

using namespace fasa;

extern "C" {

uint32_t fasa_abi_version(void) { return FASA_ABI_VERSION; }

const char* fasa_error_message(void) { return error_text; }

void fasa_log_set(fasa_log_fn fn, void* user) { log_sink_set(fn, user); }

void fasa_build_info_get(fasa_build_info* out) {
    if (!out) return;
    *out = fixed_build_info();
    guard([&] {
        add_cpu(*out);
        out->memory_available = memory_available();
    });
}

int32_t fasa_gpu_count(const char** reason) {
    static thread_local std::string why;
    int32_t n = 0;
    why.clear();
#if FASA_HAS_CUDA
    guard([&] { n = n_visible_gpus(&why); });
#else
    why = "this build has no CUDA backend (" FASA_CUDA_REASON ")";
#endif
    if (reason) *reason = why.c_str();
    return n;
}

fasa_status fasa_gpu_info_get(fasa_gpu_info* out, int32_t index) {
    return guard([&] {
        require(out, "out");
#if FASA_HAS_CUDA
        *out = describe_gpu(index);
#else
        fail(FASA_ERROR_ARGUMENT, "GPU %d does not exist: this build has no CUDA backend (%s)", index,
             FASA_CUDA_REASON);
#endif
    });
}

const char* fasa_supported_archs(void) { return supported_archs(); }

const char* fasa_supported_dtypes(void) { return dtype_supported_names(); }

}  // extern "C"
