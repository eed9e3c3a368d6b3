// An NVIDIA GPU as a device.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cuda/cublas.h"
#include "backend/cuda/ops.h"
#include "backend/cuda/runtime.h"
#include "backend/cuda/system.h"
#include "backend/cuda/weights.h"
#include "base/cpu.h"
#include "base/error.h"

namespace fasa {
namespace cuda {
namespace {

constexpr size_t staging_bytes = size_t{32} << 20;  // weights on their way to the device
constexpr size_t least_staging_bytes = size_t{1} << 20;
constexpr int least_capability = 75;

// Where sparse layers begin to pay: on an H200 at 8,192 positions of 4 KiB, as measured (docs/performance.md). So much
// longer a sparse layer takes there than a dense one when reading is left out; it spares seven eighths of the bytes.
// Where reading takes longer it pays earlier, never later than that; without clusters, in three kernels instead of
// two, so much longer is an estimate.
constexpr int32_t break_even_max = 8192;
constexpr double extra_s = 7.3e-6, extra_without_clusters_s = 15e-6, spared_share = 7.0 / 8;
constexpr double copy_share = 0.82;  // of the memory's bandwidth that kernels reach

// 0: unknown.
double bandwidth_of(int index) {
    int kilohertz = 0, bits = 0;
    if (cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, index) != cudaSuccess ||
        cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, index) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return copy_share * 2e3 * kilohertz * bits / 8;  // two transfers a cycle
}

// Of a layer's KV cache: with so many, sparse attention takes as long as dense.
double break_even_bytes(int index, const cudaDeviceProp& properties) {
    const double extra = properties.major >= 9 ? extra_s : extra_without_clusters_s;
    return extra * bandwidth_of(index) / spared_share;
}

GpuInfo gpu_info(int index, const cudaDeviceProp& properties) {
    return {index, properties.multiProcessorCount, properties.sharedMemPerBlockOptin};
}

// What is the same whether the GPU is there or not.
class Gpu : public Device {
   public:
    Gpu(int n_threads, const GpuInfo& gpu, uint64_t context_bytes, std::string name, double break_even_bytes = 0)
        : gpu_(gpu),
          context_bytes_(context_bytes),
          break_even_bytes_(break_even_bytes),
          n_threads_(n_threads > 0 ? n_threads : processor().n_cores),
          name_(std::move(name)) {}

    std::string name() const override { return name_; }
    int n_threads() const override { return n_threads_; }
    bool has_own_memory() const override { return true; }
    int32_t break_even(uint64_t kv_bytes) const override {
        if (break_even_bytes_ == 0) return break_even_max;
        return static_cast<int32_t>(
            std::min(break_even_bytes_ / static_cast<double>(kv_bytes), double{break_even_max}));
    }
    uint64_t system_bytes() const override { return context_bytes_ + code_bytes; }
    size_t weight_bytes(const WeightView& w) const override {
        return static_cast<size_t>(w.n_out) * device_row_bytes(w.dtype, w.n_in);
    }
    OpsBytes ops_bytes(const OpsLimits& limits) const override { return CudaOps::n_bytes(limits, gpu_); }

   protected:
    const GpuInfo gpu_;
    const uint64_t context_bytes_;

   private:
    double break_even_bytes_;  // of a layer's KV cache; 0: unknown
    int n_threads_;
    std::string name_;
};

class CudaDevice final : public Gpu {
   public:
    CudaDevice(int index, const cudaDeviceProp& properties, int n_threads, uint64_t memory_max)
        : Gpu(n_threads, gpu_info(index, properties), start_context(index),
              "cuda:" + std::to_string(index) + " (" + properties.name + ")", break_even_bytes(index, properties)),
          memory_max_(memory_max),
          account_(std::make_shared<Account>(buffers_max())) {}

    uint64_t memory_available() const override {
        use();
        size_t free = 0, total = 0;
        check(cudaMemGetInfo(&free, &total), "asking for the GPU's memory");
        const uint64_t there = free + context_bytes_;
        return memory_max_ > 0 ? std::min<uint64_t>(there, memory_max_ - std::min(memory_max_, account_->taken()))
                               : there;
    }

    Buffer buffer(size_t n_bytes, const char* what) const override {
        if (n_bytes == 0) return {};
        use();
        auto memory = std::make_shared<DeviceBuffer>(n_bytes, what, account_);
        void* data = memory->data();
        check(cudaMemset(data, 0, n_bytes), what);
        check(cudaStreamSynchronize(nullptr), what);  // streams of ops do not wait for it
        return {data, n_bytes, [memory](void*, size_t) mutable { memory.reset(); }};
    }

    Buffer host_buffer(size_t n_bytes, const char* what) const override {
        if (n_bytes == 0) return {};
        use();
        auto memory = std::make_shared<PinnedBuffer>(n_bytes, what, n_threads());
        return {memory->data(), n_bytes, [memory](void*, size_t) mutable { memory.reset(); }};
    }

    void copy(void* to, const void* from, size_t n_bytes) const override {
        if (n_bytes == 0) return;
        use();
        check(cudaMemcpy(to, from, n_bytes, cudaMemcpyDefault), "copying between host and device");
        check(cudaStreamSynchronize(nullptr), "copying between host and device");  // it may return before it is done
    }

    void upload(std::span<const Upload> matrices, const std::function<void(size_t)>& progress) const override {
        use();
        cublas_lt();  // throws if cuBLAS is missing, before gigabytes are uploaded
        const uint64_t room = std::max<uint64_t>(account_->left(), least_staging_bytes);
        const size_t n_staged = std::min<uint64_t>(staging_bytes, room);
        const PinnedBuffer host(n_staged, "weights on their way");
        const DeviceBuffer device(n_staged, "weights on their way", account_);
        const Stream stream;
        for (const Upload& u : matrices) {
            *u.w = cuda::upload(u.to, *u.w, {host.data(), device.data(), n_staged}, stream.get(), progress);
        }
    }

    std::unique_ptr<Ops> make_ops(const OpsLimits& limits) const override {
        use();
        return std::make_unique<CudaOps>(limits, gpu_, account_);
    }

   private:
    void use() const { check(cudaSetDevice(gpu_.index), "choosing the GPU"); }
    // What the limit leaves for buffers and graphs, at least one byte: 0 would be no limit.
    uint64_t buffers_max() const {
        if (memory_max_ == 0) return 0;
        return memory_max_ > system_bytes() ? memory_max_ - system_bytes() : 1;
    }

    uint64_t memory_max_;
    std::shared_ptr<Account> account_;
};

class AssumedGpu final : public Gpu {
   public:
    AssumedGpu(int n_threads, uint64_t memory)
        : Gpu(n_threads, assumed_gpu, context_bytes_assumed,
              "cuda (no GPU is visible; assumed: one of " + std::to_string(assumed_gpu.n_sm) +
                  " multiprocessors, compute capability 9.0)"),
          memory_(memory) {}

    uint64_t memory_available() const override { return memory_; }
    Buffer buffer(size_t, const char*) const override { refuse(); }
    Buffer host_buffer(size_t, const char*) const override { refuse(); }
    void copy(void*, const void*, size_t) const override { refuse(); }
    void upload(std::span<const Upload>, const std::function<void(size_t)>&) const override { refuse(); }
    std::unique_ptr<Ops> make_ops(const OpsLimits&) const override { refuse(); }

   private:
    // An H100's: workspace grows with the number of multiprocessors, and few GPUs have more.
    static constexpr GpuInfo assumed_gpu = {0, 132, 227 << 10};

    [[noreturn]] static void refuse() { fail(FASA_ERROR_DEVICE, "no GPU is visible: there is only a plan for one"); }

    uint64_t memory_;
};

cudaDeviceProp properties_of(int index) {
    int n = 0;
    check(cudaGetDeviceCount(&n), "counting GPUs");
    if (index < 0 || index >= n) fail(FASA_ERROR_ARGUMENT, "GPU %d does not exist: there are %d, from 0", index, n);
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, index), "looking at the GPU");
    return properties;
}

// CUDA says the same of a driver that is too old and of none.
std::string about_driver() {
    int driver = 0, runtime = 0;
    check(cudaDriverGetVersion(&driver), "asking for the driver's version");
    check(cudaRuntimeGetVersion(&runtime), "asking for the runtime's version");
    if (driver == 0) return "no NVIDIA driver is installed";
    const auto text = [](int version) {
        return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
    };
    return "the NVIDIA driver is for CUDA " + text(driver) + ", older than the " + text(runtime) +
           " that this was built with: update it";
}

bool is_supported(const cudaDeviceProp& properties) {
    return 10 * properties.major + properties.minor >= least_capability;
}

}  // namespace
}  // namespace cuda

int n_visible_gpus(std::string* reason) {
    int n = 0;
    const cudaError_t status = cudaGetDeviceCount(&n);
    if (status == cudaSuccess && n > 0) return n;
    cudaGetLastError();  // it is not to surface later
    *reason = status == cudaSuccess                   ? "no GPU"
              : status == cudaErrorInsufficientDriver ? cuda::about_driver()
                                                      : cudaGetErrorString(status);
    return 0;
}

fasa_gpu_info describe_gpu(int index) {
    const cudaDeviceProp properties = cuda::properties_of(index);
    fasa_gpu_info info = {};
    std::snprintf(info.name, sizeof info.name, "%s", properties.name);
    info.capability_major = properties.major;
    info.capability_minor = properties.minor;
    info.n_multiprocessors = properties.multiProcessorCount;
    info.memory_bytes = properties.totalGlobalMem;
    cuda::check(cudaDriverGetVersion(&info.driver_version), "asking for the driver's version");
    cuda::check(cudaRuntimeGetVersion(&info.runtime_version), "asking for the runtime's version");
    info.supported = cuda::is_supported(properties);
    return info;
}

std::unique_ptr<Device> make_cuda_device(int index, int n_threads, uint64_t memory_max) {
    std::string reason;
    if (n_visible_gpus(&reason) == 0) fail(FASA_ERROR_DEVICE, "no GPU can be used: %s", reason.c_str());
    const cudaDeviceProp properties = cuda::properties_of(index);
    if (!cuda::is_supported(properties)) {
        fail(FASA_ERROR_UNSUPPORTED,
             "GPU %d (%s) has compute capability %d.%d; 7.5 or newer is needed: use device=\"cpu\"", index,
             properties.name, properties.major, properties.minor);
    }
    return std::make_unique<cuda::CudaDevice>(index, properties, n_threads, memory_max);
}

std::unique_ptr<Device> make_assumed_gpu(int n_threads, uint64_t memory) {
    return std::make_unique<cuda::AssumedGpu>(n_threads, memory);
}

}  // namespace fasa
