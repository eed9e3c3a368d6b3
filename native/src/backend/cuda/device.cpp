// An NVIDIA GPU as a device.
#include <algorithm>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cuda/ops.h"
#include "backend/cuda/runtime.h"
#include "backend/cuda/weights.h"
#include "base/cpu.h"
#include "base/error.h"

namespace fasa {
namespace cuda {
namespace {

constexpr size_t staging_bytes = size_t{32} << 20;  // weights on their way to the device
constexpr int least_capability = 75;

class CudaDevice final : public Device {
   public:
    CudaDevice(int index, int n_threads) : n_threads_(n_threads > 0 ? n_threads : processor().n_cores) {
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, index), "looking at the GPU");
        if (10 * properties.major + properties.minor < least_capability) {
            fail(FASA_ERROR_UNSUPPORTED,
                 "GPU %d (%s) has compute capability %d.%d; 7.5 or newer is needed: use device=\"cpu\"", index,
                 properties.name, properties.major, properties.minor);
        }
        gpu_ = {index, properties.multiProcessorCount, properties.sharedMemPerBlockOptin};
        name_ = "cuda:" + std::to_string(index) + " (" + properties.name + ")";
        use();
        check(cudaFree(nullptr), "starting the GPU");  // creates its context, so that what is free afterwards is ours
    }

    std::string name() const override { return name_; }
    int n_threads() const override { return n_threads_; }

    Buffer buffer(size_t n_bytes, const char* what) const override {
        if (n_bytes == 0) return {};
        use();
        void* data = DeviceBuffer(n_bytes, what).release();
        Buffer buffer(data, n_bytes, [](void* p, size_t) { cudaFree(p); });
        check(cudaMemset(data, 0, n_bytes), what);
        return buffer;
    }

    Buffer host_buffer(size_t n_bytes, const char* what) const override {
        if (n_bytes == 0) return {};
        use();
        return {PinnedBuffer(n_bytes, what).release(), n_bytes, [](void* p, size_t) { cudaFreeHost(p); }};
    }

    void copy(void* to, const void* from, size_t n_bytes) const override {
        if (n_bytes == 0) return;
        use();
        check(cudaMemcpy(to, from, n_bytes, cudaMemcpyDefault), "copying between host and device");
    }

    bool has_own_memory() const override { return true; }

    uint64_t memory_available() const override {
        use();
        size_t free = 0, total = 0;
        check(cudaMemGetInfo(&free, &total), "asking for the GPU's memory");
        return free;
    }

    uint64_t system_bytes() const override { return 0; }

    size_t weight_bytes(const WeightView& w) const override {
        return static_cast<size_t>(w.n_out) * device_row_bytes(w.dtype, w.n_in);
    }

    void upload(std::span<const Upload> matrices, const std::function<void(size_t)>& progress) const override {
        use();
        const PinnedBuffer host(staging_bytes, "weights on their way");
        const DeviceBuffer device(staging_bytes, "weights on their way");
        const Stream stream;
        for (const Upload& u : matrices) {
            *u.w = cuda::upload(u.to, *u.w, {host.data(), device.data(), staging_bytes}, stream.get(), progress);
        }
    }

    std::unique_ptr<Ops> make_ops(const OpsLimits& limits) const override {
        use();
        return std::make_unique<CudaOps>(limits, gpu_);
    }
    OpsBytes ops_bytes(const OpsLimits& limits) const override {
        return {CudaOps::device_bytes(limits, gpu_), CudaOps::host_bytes(limits), 0, CudaOps::row_cache_bytes(limits)};
    }

   private:
    void use() const { check(cudaSetDevice(gpu_.index), "choosing the GPU"); }

    int n_threads_;
    GpuInfo gpu_;
    std::string name_;
};

}  // namespace
}  // namespace cuda

bool cuda_visible(std::string* reason) {
    int n = 0;
    const cudaError_t status = cudaGetDeviceCount(&n);
    if (status == cudaSuccess && n > 0) return true;
    cudaGetLastError();  // it is not to surface later
    *reason = status == cudaSuccess ? "no GPU" : cudaGetErrorString(status);
    return false;
}

std::unique_ptr<Device> make_cuda_device(int index, int n_threads) {
    std::string reason;
    if (!cuda_visible(&reason)) fail(FASA_ERROR_DEVICE, "no GPU can be used: %s", reason.c_str());
    int n = 0;
    cuda::check(cudaGetDeviceCount(&n), "counting GPUs");
    if (index < 0 || index >= n) fail(FASA_ERROR_ARGUMENT, "GPU %d does not exist: there are %d, from 0", index, n);
    return std::make_unique<cuda::CudaDevice>(index, n_threads);
}

}  // namespace fasa
