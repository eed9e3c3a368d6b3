// Calls of the CUDA runtime, as C++: failures are Errors, memory has an owner.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace fasa::cuda {

// Throws MEMORY when memory is short, else DEVICE with the runtime's text and `what` was attempted.
void check(cudaError_t status, const char* what);

// Where the rows of the batch in progress lie. Kernels read it from device memory, so that a captured graph serves
// every later step.
struct Step {
    int32_t seq, pos0;
};

}  // namespace fasa::cuda
