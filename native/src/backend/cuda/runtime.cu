#include "backend/cuda/runtime.h"

#include "base/error.h"

namespace fasa::cuda {

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // a failure that was reported must not be found again by a later call
    const fasa_status kind = status == cudaErrorMemoryAllocation ? FASA_ERROR_MEMORY : FASA_ERROR_DEVICE;
    fail(kind, "CUDA: %s: %s", what, cudaGetErrorString(status));
}

}  // namespace fasa::cuda
