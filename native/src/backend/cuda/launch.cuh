// Starting kernels. Every launch goes through here, so that an error names the kernel, and so that a build for tests
// can run kernels on a CPU (tests/cuda_on_cpu).
#pragma once

#include <map>
#include <mutex>

#include "backend/cuda/runtime.h"

// Memory of the block whose size the launch gives, 128-byte aligned: a uint8_t*.
#define FASA_DYNAMIC_SHARED(name) extern __shared__ __align__(128) uint8_t name[]

namespace fasa::cuda {

struct Launch {
    const char* name;  // of the kernel, for errors
    dim3 grid, block;
    size_t shared_bytes = 0;
    cudaStream_t stream = nullptr;
    // The kernel may start while the one before it still runs: it must call ptx::wait_for_previous() before it reads
    // what that one writes (programmatic dependent launch, compute capability 9.0; elsewhere it simply follows:
    // can_overlap).
    bool overlap = false;
    // Neighbouring blocks (in x) that run at once and reach one another's shared memory: compute capability 9.0.
    unsigned cluster = 1;
};

// Of which only 8 are sure to be possible.
constexpr unsigned max_cluster = 16;

// Once per kernel before its first launch with more than 48 KiB of shared memory.
template <class... P>
void allow_shared(void (*kernel)(P...), size_t n_bytes, const char* name) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(n_bytes)),
          name);
}

// Whether kernels wait for the one before them on the current GPU. Those built for compute capabilities below 9.0 alone
// do not, not even where a newer GPU's driver translates them. All kernels are built for the same ones, so that any of
// them tells. Graphs hold launches that overlap from CUDA 12.3 on.
inline bool can_overlap(const void* kernel, const char* name) {
    static std::mutex mutex;
    static std::map<int, bool> known;  // by GPU
    int gpu = 0, driver = 0;
    check(cudaGetDevice(&gpu), name);
    const std::lock_guard lock(mutex);
    const auto found = known.find(gpu);
    if (found != known.end()) return found->second;
    cudaFuncAttributes built;
    check(cudaFuncGetAttributes(&built, kernel), name);
    check(cudaDriverGetVersion(&driver), name);
    return known[gpu] = built.ptxVersion >= 90 && driver >= 12030;
}

inline cudaLaunchConfig_t config_of(const Launch& how, cudaLaunchAttribute (&attributes)[2]) {
    cudaLaunchConfig_t config = {};
    config.gridDim = how.grid;
    config.blockDim = how.block;
    config.dynamicSmemBytes = how.shared_bytes;
    config.stream = how.stream;
    config.attrs = attributes;
    if (how.overlap) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    if (how.cluster > 1) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {how.cluster, 1, 1};
    }
    return config;
}

// The largest cluster, `wanted` blocks or that halved, of which n_cluster run at once, up to one block; 0: the kernel
// was not built for clusters whose blocks send each other mail (ptx.cuh). The kernel is then allowed that size.
template <class... P>
unsigned largest_cluster(void (*kernel)(P...), unsigned n_cluster, dim3 block, size_t shared_bytes, unsigned wanted) {
    const void* function = reinterpret_cast<const void*>(kernel);
    cudaFuncAttributes built;
    check(cudaFuncGetAttributes(&built, kernel), "looking at a kernel");
    if (CUDART_VERSION < 12010 || built.ptxVersion < 90) return 0;
    if (cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess) {
        cudaGetLastError();  // then up to eight blocks
    }
    for (unsigned cluster = wanted; cluster > 1; cluster /= 2) {
        cudaLaunchAttribute attributes[2];
        const cudaLaunchConfig_t config =
            config_of({"", dim3(cluster * n_cluster), block, shared_bytes, nullptr, false, cluster}, attributes);
        int n = 0;
        if (cudaOccupancyMaxActiveClusters(&n, kernel, &config) != cudaSuccess) {
            cudaGetLastError();  // too large for this GPU
        } else if (n >= static_cast<int>(n_cluster)) {
            return cluster;
        }
    }
    return 1;
}

template <class... P, class... A>
void launch(const Launch& how, void (*kernel)(P...), A... args) {
    cudaLaunchAttribute attributes[2];
    Launch possible = how;
    if (how.overlap) possible.overlap = can_overlap(reinterpret_cast<const void*>(kernel), how.name);
    const cudaLaunchConfig_t config = config_of(possible, attributes);
    launched(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), how.stream, how.name);
}

}  // namespace fasa::cuda
