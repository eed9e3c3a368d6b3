// The parts of an instruction set's matrix products, one a file.
#pragma once

#include "backend/cpu/isa/simd.h"
#include "backend/cpu/linear_kernels.h"

namespace fasa::cpu::FASA_ISA {

// Rows begin..end of a product: `vec` along each row as it lies in the file, best for few tokens; `mat` with the
// weights of a tile of rows unpacked once for all tokens.
void vec_quantized(const LinearJob& job, int64_t begin, int64_t end);
void mat_quantized(const LinearJob& job, int64_t begin, int64_t end, void* scratch);
void vec_float(const LinearJob& job, int64_t begin, int64_t end);
void mat_float(const LinearJob& job, int64_t begin, int64_t end, void* scratch);

// Tokens from which `mat` is the faster one, as measured.
#if defined(__AVX512F__)
inline constexpr int MAT_MIN = 3;
#else
inline constexpr int MAT_MIN = 4;
#endif
inline constexpr int MAT_MIN_FLOAT = 10;
static_assert(MAT_MIN <= n_rows_alike && MAT_MIN_FLOAT <= n_rows_alike);

#if defined(__AVX512F__)
inline constexpr int MAT_V = 2;           // vectors of rows in a tile
inline constexpr bool MAT_BIASED = true;  // VNNI multiplies unsigned by signed bytes: mat_quantized takes q + 128
#else
inline constexpr int MAT_V = 1;
inline constexpr bool MAT_BIASED = false;
#endif
inline constexpr int MAT_TILE = MAT_V * LANES;  // rows

inline const uint8_t* row(const WeightView& w, int64_t r) {
    return static_cast<const uint8_t*>(w.data) + static_cast<size_t>(r) * w.row_bytes;
}

// To be called for every cache line of weights that are read once: into the first level shortly before, into the second
// early enough to hide the latency of memory. The hardware's own prefetching stops at each page.
inline void prefetch(const uint8_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p) + 1024, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p) + 4096, _MM_HINT_T1);
}

// Puts the product of row r and token i in its place.
inline void put(const LinearOut& out, int64_t r, int64_t i, float value) {
    float& y = out.y[i * out.w.n_out + r];
    y = value + (out.bias ? out.bias[r] : 0.0f) + (out.add ? y : 0.0f);
}

// The same for n products of rows r, r + 1, ...
inline void put_row(const LinearOut& out, int64_t r, int64_t n, int64_t i, const float* values) {
    float* y = out.y + i * out.w.n_out + r;
    for (int64_t j = 0; j < n; j += LANES) {
        const int rest = n - j < LANES ? static_cast<int>(n - j) : 0;
        const auto get = [&](const float* p) { return rest ? load_first(p + j, rest) : load(p + j); };
        vf v = load(values + j);
        if (out.bias) v = add(v, get(out.bias + r));
        if (out.add) v = add(v, get(y));
        if (rest) {
            store_first(y + j, v, rest);
        } else {
            store(y + j, v);
        }
    }
}

}  // namespace fasa::cpu::FASA_ISA
