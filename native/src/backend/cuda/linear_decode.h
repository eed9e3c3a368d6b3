// The matrix products of decoding: up to 9 rows of activations. Every weight is read once, at the speed of memory.
#pragma once

#include "backend/cuda/quantize.h"
#include "backend/cuda/runtime.h"
#include "backend/views.h"
#include "base/buffer.h"

namespace fasa::cuda {

inline constexpr int n_decode_max = n_rows_alike - 1;

// The rows that the products of one call share. Rows are 16-byte aligned where n_in is a multiple of 4.
struct DecodeInput {
    const float* x;               // [n][n_in]
    const float* norm = nullptr;  // [n_in]: the rows are divided by their rms and multiplied by this first; or nullptr
    float eps = 0;                // of the norm
    Quantized quantized = {};     // of the rows (after the norm), if there already; float weights still read x and norm
};

// Device memory for what a call puts down between two kernels.
struct DecodeScratch {
    Quantized quantized;
    float* x;  // [n_decode_max][n_in_max]

    static DecodeScratch take(Arena& arena, int64_t n_in_max);
};

// Products with weights in device memory (weights.h): y = x wᵀ (+ bias) (+ y). y must not overlap x. For one row it is
// one kernel, that norms and quantises by itself; for more, one that does that comes before. The order of sums depends
// on shapes and on the GPU's number of processors only, so a call's results are the same every time.
void linear_decode(const LinearOut* out, int n_products, const DecodeInput& in, int n, const DecodeScratch& scratch,
                   cudaStream_t stream);

// y[i][r] = silu(x[i] . gate[r]) * (x[i] . up[r]), for matrices of one type and shape (glu_fits); y [n][n_out].
void linear_glu_decode(float* y, const WeightView& gate, const WeightView& up, const DecodeInput& in, int n,
                       const DecodeScratch& scratch, cudaStream_t stream);
bool glu_fits(const WeightView& gate, const WeightView& up);

}  // namespace fasa::cuda
