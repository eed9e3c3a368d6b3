// What the ops of a backend work on: plain structs, no ownership.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace fasa {

// A weight matrix as it lies in the file: n_out rows of n_in values, rows contiguous.
struct WeightView {
    DType dtype = FASA_DTYPE_F32;
    const void* data = nullptr;
    int64_t n_in = 0, n_out = 0;
    size_t row_bytes = 0;

    explicit operator bool() const { return data != nullptr; }
    size_t n_bytes() const { return static_cast<size_t>(n_out) * row_bytes; }
};

// One product of a `linear` op: y[i][r] = x[i] . w[r] (+ bias[r]) (+ y[i][r] when add).
struct LinearOut {
    WeightView w;
    const float* bias = nullptr;  // [n_out] or nullptr
    float* y = nullptr;           // [n][n_out]
    bool add = false;
};

}  // namespace fasa
