// The parts of an instruction set's matrix products, one a file.
#pragma once

#include "backend/cpu/isa/simd.h"
#include "backend/cpu/linear_kernels.h"

namespace fasa::cpu::FASA_ISA {

// Rows begin..end of a product: `vec` along each row of the file's blocks, best for few tokens; `mat` with the weights
// of a tile of rows unpacked once for all tokens.
void vec_quantized(const LinearJob& job, int64_t begin, int64_t end);
void vec_float(const LinearJob& job, int64_t begin, int64_t end);

inline const uint8_t* row(const WeightView& w, int64_t r) {
    return static_cast<const uint8_t*>(w.data) + static_cast<size_t>(r) * w.row_bytes;
}

// Puts the product of row r and token i in its place.
inline void put(const LinearOut& out, int64_t r, int64_t i, float value) {
    float& y = out.y[i * out.w.n_out + r];
    y = value + (out.bias ? out.bias[r] : 0.0f) + (out.add ? y : 0.0f);
}

}  // namespace fasa::cpu::FASA_ISA
