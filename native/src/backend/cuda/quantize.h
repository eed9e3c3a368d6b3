// Activations as int8, as backend/cpu/quant.h has them, and the row-wise ops that come before a matrix product, which
// can put out both forms of a row.
#pragma once

#include <cstdint>

#include "backend/cuda/runtime.h"

namespace fasa::cuda {

// x[i][k] is about d[i][k / 32] * q[i][k]; the same bits as on the CPU. A block of 32 that holds NaN or an infinity has
// d = NaN and q = 0. Sums of q are left to the products that need them: a thread has q in registers by then.
struct Quantized {
    int8_t* q = nullptr;  // [n][n_in], -127..127, 16-byte aligned
    float* d = nullptr;   // [n][n_in / 32]

    explicit operator bool() const { return q != nullptr; }
};

// x [n_values], 16-byte aligned, n_values a multiple of 32; rows one after the other.
void quantize(const Quantized& to, const float* x, int64_t n_values, cudaStream_t stream);

// y = x / rms(x) * weight over rows of dim values; y may be x, or nullptr when only the quantised rows are wanted.
// These need dim to be a multiple of 32 and 16-byte aligned rows and weight.
void rms_norm(float* y, const Quantized& to, const float* x, const float* weight, int64_t n_rows, int dim, float eps,
              cudaStream_t stream);

// y = silu(gate) * up; y may be gate or up, or nullptr when only the quantised values are wanted, as above.
void glu(float* y, const Quantized& to, const float* gate, const float* up, int64_t n_values, cudaStream_t stream);

}  // namespace fasa::cuda
