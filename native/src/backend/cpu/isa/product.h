// A small matrix product whose operands lie in scratch: what prefill's attention and observation are made of.
#pragma once

#include "backend/cpu/isa/simd.h"

namespace fasa::cpu::FASA_ISA {

// c [M][n] = scale [n] * c + a · b over depth k, columns n in pairs of vectors. a's element (m, k) is at
// a[m * a_row + k * a_col]; b [k][n], c [..][n]; scale nullptr: c starts at zero.
template <int M, int V>
void product_block(const float* a, int64_t a_row, int64_t a_col, const float* b, int depth, int n, const float* scale,
                   float* c) {
    vf sum[M][V];
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) {
            sum[m][v] = scale ? mul(load(c + m * n + v * LANES), load(scale + v * LANES)) : zero();
        }
    }
    for (int k = 0; k < depth; ++k) {
        vf right[V];
        for (int v = 0; v < V; ++v) right[v] = load(b + int64_t{k} * n + v * LANES);
        for (int m = 0; m < M; ++m) {
            const vf left = set1(a[m * a_row + k * a_col]);
            for (int v = 0; v < V; ++v) sum[m][v] = fma(left, right[v], sum[m][v]);
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) store(c + m * n + v * LANES, sum[m][v]);
    }
}

#if defined(__AVX512F__)
constexpr int block_rows = 8;  // 8 x 2 sums, 2 right, 1 left of 32 registers
#else
constexpr int block_rows = 4;  // 4 x 2 sums of 16 registers
#endif

template <int V>
void product_columns(const float* a, int64_t a_row, int64_t a_col, const float* b, int m_total, int depth, int n,
                     const float* scale, float* c) {
    int m = 0;
    for (; m + block_rows <= m_total; m += block_rows) {
        product_block<block_rows, V>(a + m * a_row, a_row, a_col, b, depth, n, scale, c + int64_t{m} * n);
    }
    for (; m < m_total; ++m) product_block<1, V>(a + m * a_row, a_row, a_col, b, depth, n, scale, c + int64_t{m} * n);
}

inline void product(const float* a, int64_t a_row, int64_t a_col, const float* b, int m_total, int depth, int n,
                    const float* scale, float* c) {
    int column = 0;
    for (; column + 2 * LANES <= n; column += 2 * LANES) {
        product_columns<2>(a, a_row, a_col, b + column, m_total, depth, n, scale ? scale + column : nullptr,
                           c + column);
    }
    if (column < n) {
        product_columns<1>(a, a_row, a_col, b + column, m_total, depth, n, scale ? scale + column : nullptr,
                           c + column);
    }
}

}  // namespace fasa::cpu::FASA_ISA
