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

inline constexpr int max_head_dim = 1024;

// Calls of at least this many rows round alike, whatever their number: a backend may take other kernels, with sums in
// another order, only for fewer (as decoding does). So a prompt whose last batch has this many rows gives the same bits
// wherever its batches end, and however much of it was known before. FASA_ROWS_ALIKE in fasa.h.
inline constexpr int n_rows_alike = 10;

// Rows of a batch: consecutive positions pos0 .. pos0 + n - 1 of one sequence.
struct Rows {
    int32_t seq = 0, pos0 = 0, n = 0;
};

// The KV cache of one layer. For every sequence, KV head and position one row, contiguous: the rotated key, then the
// value, half precision.
struct KvView {
    uint16_t* data = nullptr;  // [n_seq][n_head_kv][n_ctx][2 * head_dim]
    int32_t n_ctx = 0, n_head_kv = 0, head_dim = 0;

    int64_t row_values() const { return 2 * static_cast<int64_t>(head_dim); }
    uint16_t* row(int32_t seq, int32_t head_kv, int32_t pos) const {
        return data + ((static_cast<int64_t>(seq) * n_head_kv + head_kv) * n_ctx + pos) * row_values();
    }
};

enum class RopeLayout {
    interleaved,  // pair i is dims 2i, 2i + 1
    half_split    // pair i is dims i, i + n_rot / 2
};

// Cosines and sines of a batch's rows, already scaled: [n][n_rot / 2].
struct RopeView {
    RopeLayout layout = RopeLayout::interleaved;
    int32_t n_rot = 0;
    const float* cos = nullptr;
    const float* sin = nullptr;
};

}  // namespace fasa
