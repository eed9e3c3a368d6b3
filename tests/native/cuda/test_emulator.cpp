// The emulation itself (tests/cuda_on_cpu): these also hold on a GPU.
#include <numeric>
#include <vector>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "check.h"

namespace fasa::cuda {
namespace {

__global__ void reverse(int* x) {
    __shared__ int copy[96];
    copy[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = copy[95 - threadIdx.x];
}

TEST(cuda_barrier) {
    std::vector<int> x(96);
    std::iota(x.begin(), x.end(), 0);
    int* d = nullptr;
    check(cudaMalloc(&d, 96 * 4), "memory");
    check(cudaMemcpy(d, x.data(), 96 * 4, cudaMemcpyHostToDevice), "copy");
    launch({"reverse", 1, 96}, reverse, d);
    check(cudaMemcpy(x.data(), d, 96 * 4, cudaMemcpyDeviceToHost), "copy");
    for (int i = 0; i < 96; ++i) CHECK(x[i] == 95 - i);
    check(cudaFree(d), "free");
}

}  // namespace
}  // namespace fasa::cuda
