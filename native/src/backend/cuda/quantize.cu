#include "backend/cuda/quantize.cuh"

#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "base/error.h"

namespace fasa::cuda {

namespace {

constexpr int N_THREADS = 256;
constexpr float4 ZEROS = {0, 0, 0, 0};

unsigned n_blocks_for(int64_t n) { return static_cast<unsigned>((n + N_THREADS - 1) / N_THREADS); }

// One thread for every four values; the last warp is filled up, as a block of 32 needs its lanes.
__global__ void quantize_rows(Quantized to, const float* x, int64_t n_fours) {
    ptx::wait_for_previous();
    ptx::start_next();
    const int64_t i = int64_t{blockIdx.x} * N_THREADS + threadIdx.x;
    const QuantizedFour v = quantize_four(i < n_fours ? load_four(x, i) : ZEROS);
    if (i < n_fours) store_four(to, i, v);
}

// One block a row.
template <bool aligned>
__global__ void rms_norm_rows(float* y, Quantized to, const float* x, const float* weight, int dim, float eps) {
    __shared__ float sums[32];
    ptx::wait_for_previous();
    ptx::start_next();
    const int64_t row = blockIdx.x;
    const float* in = x + row * dim;
    float* out = y ? y + row * dim : nullptr;
    const float scale = norm_scale<aligned>(in, dim, eps, sums);
    const int n_threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    if constexpr (!aligned) {
        for (int i = thread; i < dim; i += n_threads) out[i] = in[i] * scale * weight[i];
    } else {
        const int n_fours = dim / 4;
        for (int first = 0; first < n_fours; first += n_threads) {
            const int i = first + thread;
            const bool inside = i < n_fours;
            const float4 v = inside ? normed(load_four(in, i), scale, load_four(weight, i)) : ZEROS;
            if (inside && out) reinterpret_cast<float4*>(out)[i] = v;
            if (!to.q) continue;
            const QuantizedFour four = quantize_four(v);
            if (inside) store_four(to, row * n_fours + i, four);
        }
    }
}

__global__ void glu_fours(float* y, Quantized to, const float* gate, const float* up, int64_t n_fours) {
    ptx::wait_for_previous();
    ptx::start_next();
    const int64_t i = int64_t{blockIdx.x} * N_THREADS + threadIdx.x;
    const bool inside = i < n_fours;
    float4 v = ZEROS;
    if (inside) {
        const float4 g = load_four(gate, i), u = load_four(up, i);
        v = {silu(g.x) * u.x, silu(g.y) * u.y, silu(g.z) * u.z, silu(g.w) * u.w};
        if (y) reinterpret_cast<float4*>(y)[i] = v;
    }
    if (!to.q) return;
    const QuantizedFour four = quantize_four(v);
    if (inside) store_four(to, i, four);
}

__global__ void glu_values(float* y, const float* gate, const float* up, int64_t n) {
    ptx::wait_for_previous();
    ptx::start_next();
    const int64_t i = int64_t{blockIdx.x} * N_THREADS + threadIdx.x;
    if (i < n) y[i] = silu(gate[i]) * up[i];
}

bool aligned_16(std::initializer_list<const void*> pointers) {
    return std::all_of(pointers.begin(), pointers.end(),
                       [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

// `bytes_ok`: whether blocks of 32 and loads of 16 bytes fit.
void require_quantizable(bool bytes_ok, const char* what) {
    if (!bytes_ok) fail(FASA_ERROR_ARGUMENT, "%s: int8 activations need aligned rows of a multiple of 32 values", what);
}

}  // namespace

void quantize(const Quantized& to, const float* x, int64_t n_values, cudaStream_t stream) {
    require_quantizable(n_values % 32 == 0 && aligned_16({x, to.q}), "quantize");
    launch({"quantize_rows", dim3(n_blocks_for(n_values / 4)), dim3(N_THREADS), 0, stream, true}, quantize_rows, to, x,
           n_values / 4);
}

void rms_norm(float* y, const Quantized& to, const float* x, const float* weight, int64_t n_rows, int dim, float eps,
              cudaStream_t stream) {
    const bool aligned = dim % 4 == 0 && aligned_16({x, y, weight, to.q});
    if (to) require_quantizable(aligned && dim % 32 == 0, "rms_norm");
    const int per_thread = aligned ? 4 : 1;
    const int n_threads = std::clamp((dim + 32 * per_thread - 1) / (32 * per_thread) * 32, 32, 1024);
    launch(
        {"rms_norm_rows", dim3(static_cast<unsigned>(n_rows)), dim3(static_cast<unsigned>(n_threads)), 0, stream, true},
        aligned ? rms_norm_rows<true> : rms_norm_rows<false>, y, to, x, weight, dim, eps);
}

void glu(float* y, const Quantized& to, const float* gate, const float* up, int64_t n_values, cudaStream_t stream) {
    const bool aligned = n_values % 4 == 0 && aligned_16({y, gate, up, to.q});
    if (to) require_quantizable(aligned && n_values % 32 == 0, "glu");
    const dim3 threads(N_THREADS);
    if (aligned) {
        launch({"glu_fours", dim3(n_blocks_for(n_values / 4)), threads, 0, stream, true}, glu_fours, y, to, gate, up,
               n_values / 4);
    } else {
        launch({"glu_values", dim3(n_blocks_for(n_values)), threads, 0, stream, true}, glu_values, y, gate, up,
               n_values);
    }
}

}  // namespace fasa::cuda
