// The loops that products with many tokens share. A tile is MAT_TILE rows: MAT_V vectors with one row a lane. Its
// weights are unpacked into a panel, a span of the input at a time, which stays in the first-level cache while all
// tokens pass by.
#pragma once

#include "backend/cpu/isa/linear.h"

namespace fasa::cpu::FASA_ISA {

constexpr size_t PANEL_BYTES = 32 << 10;
constexpr int N_PANELS = 4;      // tiles that pass by the same activations before those are left for the next span
constexpr int MAX_TOKENS = 512;  // whose sums are kept at once
constexpr size_t SUMS = size_t{N_PANELS} * MAX_TOKENS * MAT_TILE;

// The rows of a tile: byte offset of each lane's row from the first one. Beyond the last row, that row again.
struct TileRows {
    alignas(64) int32_t offsets[MAT_V][LANES];

    TileRows(const WeightView& w, int64_t r) {
        const int64_t last = w.n_out - 1 - r;
        for (int i = 0; i < MAT_TILE; ++i) {
            offsets[i / LANES][i % LANES] =
                static_cast<int32_t>((i < last ? i : last) * static_cast<int64_t>(w.row_bytes));
        }
    }
};

// A Kernel has
//   span: values of the input that a panel covers;
//   n_tokens: in the innermost loop;
//   unpack(w, r, k, n, panel): values k .. k + n - 1 of rows r .. r + MAT_TILE - 1;
//   multiply<N>(panel, n, job, i, k, sums): adds to sums [N][MAT_TILE] the products with tokens i .. i + N - 1.
template <class Kernel, int N>
inline void multiply(const uint8_t* panel, int64_t span, const LinearJob& job, int64_t i, int n, int64_t k,
                     float* sums) {
    if (n == N) {
        Kernel::template multiply<N>(panel, span, job, i, k, sums);
    } else if constexpr (N > 1) {
        multiply<Kernel, N - 1>(panel, span, job, i, n, k, sums);
    }
}

// Tokens first .. first + n - 1 of up to N_PANELS tiles of rows.
template <class Kernel>
void mat_tiles(const LinearJob& job, int64_t begin, int64_t end, int64_t first, int n, uint8_t* panel, float* sums) {
    const WeightView& w = job.out.w;
    const int64_t n_tiles = (end - begin + MAT_TILE - 1) / MAT_TILE;
    __builtin_memset(sums, 0, static_cast<size_t>(n_tiles * n) * MAT_TILE * sizeof(float));
    for (int64_t k = 0; k < w.n_in; k += Kernel::span) {
        const int64_t span = w.n_in - k < Kernel::span ? w.n_in - k : Kernel::span;
        for (int64_t t = 0; t < n_tiles; ++t) {
            Kernel::unpack(w, begin + t * MAT_TILE, k, span, panel);
            for (int i = 0; i < n; i += Kernel::n_tokens) {
                const int n_now = n - i < Kernel::n_tokens ? n - i : Kernel::n_tokens;
                multiply<Kernel, Kernel::n_tokens>(panel, span, job, first + i, n_now, k,
                                                   sums + (t * n + i) * MAT_TILE);
            }
        }
    }
    for (int i = 0; i < n; ++i) {
        for (int64_t t = 0; t < n_tiles; ++t) {
            const int64_t r = begin + t * MAT_TILE, n_rows = end - r < MAT_TILE ? end - r : MAT_TILE;
            put_row(job.out, r, n_rows, first + i, sums + (t * n + i) * MAT_TILE);
        }
    }
}

// Rows begin..end for all tokens. scratch: mat_scratch_bytes().
template <class Kernel>
void mat_product(const LinearJob& job, int64_t begin, int64_t end, void* scratch) {
    auto* panel = static_cast<uint8_t*>(scratch);
    auto* sums = reinterpret_cast<float*>(panel + PANEL_BYTES);
    constexpr int64_t step = N_PANELS * MAT_TILE;
    for (int first = 0; first < job.n; first += MAX_TOKENS) {
        const int n = job.n - first < MAX_TOKENS ? job.n - first : MAX_TOKENS;
        for (int64_t r = begin; r < end; r += step) {
            mat_tiles<Kernel>(job, r, end - r < step ? end : r + step, first, n, panel, sums);
        }
    }
}

inline size_t mat_scratch_bytes() { return PANEL_BYTES + SUMS * sizeof(float); }

}  // namespace fasa::cpu::FASA_ISA
