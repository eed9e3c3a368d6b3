// Starting kernels. Every launch goes through here, so that an error names the kernel, and so that a build for tests
// can run kernels on a CPU (tests/cuda_on_cpu).
#pragma once

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
    // what that one writes (programmatic dependent launch, compute capability 9.0; elsewhere it simply follows).
    bool overlap = false;
};

// Once per kernel before its first launch with more than 48 KiB of shared memory.
template <class... P>
void allow_shared(void (*kernel)(P...), size_t n_bytes, const char* name) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(n_bytes)),
          name);
}

template <class... P, class... A>
void launch(const Launch& how, void (*kernel)(P...), A... args) {
    cudaLaunchConfig_t config = {};
    config.gridDim = how.grid;
    config.blockDim = how.block;
    config.dynamicSmemBytes = how.shared_bytes;
    config.stream = how.stream;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = how.overlap ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), how.name);
}

}  // namespace fasa::cuda
