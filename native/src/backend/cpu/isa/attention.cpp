// Dense attention with vectors. Decode streams the cache once and is bound by memory; prefill is two small matrix
// products per tile with lanes = queries, so that the softmax needs no horizontal step and nothing is transposed.
#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/isa/simd.h"

namespace fasa::cpu::FASA_ISA {
namespace {

constexpr int block = 32;             // positions scored before their values are added: their rows stay in L1
constexpr int q_group = 4;            // queries that share one conversion of a key
constexpr int prefetch_bytes = 4096;  // how far ahead rows are fetched: memory latency times bandwidth
constexpr float minus_infinity = -__builtin_inff();

vf load_half_any(const uint16_t* p, int n) { return n >= LANES ? load_half(p) : load_half_first(p, n); }

// scores[i][j] of n positions for N queries.
template <int N>
void score_block(const float* q, int head_dim, const uint16_t* rows, int n, float (*scores)[block]) {
    const int stride = padded(head_dim);
    const int64_t row_values = 2 * int64_t{head_dim};
    for (int j = 0; j < n; ++j) {
        const uint16_t* key = rows + j * row_values;
        // The key and value of a row some way ahead; harmless past the end.
        const auto* ahead = reinterpret_cast<const char*>(key) + prefetch_bytes;
        for (int64_t line = 0; line < row_values * 2; line += 64) __builtin_prefetch(ahead + line);
        vf sum[N];
        for (int i = 0; i < N; ++i) sum[i] = zero();
        for (int d = 0; d < head_dim; d += LANES) {
            const vf k = load_half_any(key + d, head_dim - d);
            for (int i = 0; i < N; ++i) sum[i] = fma(k, load(q + i * stride + d), sum[i]);
        }
        for (int i = 0; i < N; ++i) scores[i][j] = reduce_add(sum[i]);
    }
}

// Turns scores into weights exp(score - max) and rescales what was summed under a smaller maximum.
void soften_block(float* scores, int n, int head_dim, SoftmaxState& state) {
    for (int j = n; j < block; ++j) scores[j] = minus_infinity;
    vf top = load(scores);
    for (int j = LANES; j < block; j += LANES) top = max(top, load(scores + j));
    const float new_max = reduce_max(top);
    if (new_max > state.max) {
        const vf scale = exp(set1(state.max - new_max));
        for (int d = 0; d < head_dim; d += LANES) store(state.values + d, mul(load(state.values + d), scale));
        state.sum *= reduce_max(scale);
        state.max = new_max;
    }
    vf sum = zero();
    for (int j = 0; j < block; j += LANES) {
        const vf weight = exp(sub(load(scores + j), set1(state.max)));
        store(scores + j, weight);
        sum = add(sum, weight);
    }
    state.sum += reduce_add(sum);
}

template <int N>
void add_values(const uint16_t* rows, int n, int head_dim, const float (*weights)[block], SoftmaxState* state) {
    const int64_t row_values = 2 * int64_t{head_dim};
    for (int d = 0; d < head_dim; d += LANES) {
        vf sum[N];
        for (int i = 0; i < N; ++i) sum[i] = load(state[i].values + d);
        for (int j = 0; j < n; ++j) {
            const vf v = load_half_any(rows + j * row_values + head_dim + d, head_dim - d);
            for (int i = 0; i < N; ++i) sum[i] = fma(set1(weights[i][j]), v, sum[i]);
        }
        for (int i = 0; i < N; ++i) store(state[i].values + d, sum[i]);
    }
}

template <int N>
void attend_block(const float* q, int head_dim, const uint16_t* rows, int n, SoftmaxState* state) {
    alignas(64) float scores[N][block];
    score_block<N>(q, head_dim, rows, n, scores);
    for (int i = 0; i < N; ++i) soften_block(scores[i], n, head_dim, state[i]);
    add_values<N>(rows, n, head_dim, scores, state);
}

void chunk(const float* q, int n_q, int head_dim, const uint16_t* rows, int n_pos, SoftmaxState* state) {
    const int stride = padded(head_dim);
    for (int i = 0; i < n_q; ++i) {
        state[i].max = minus_infinity;
        state[i].sum = 0;
        for (int d = 0; d < stride; d += LANES) store(state[i].values + d, zero());
    }
    for (int j = 0; j < n_pos; j += block) {
        const int n = n_pos - j < block ? n_pos - j : block;
        const uint16_t* at = rows + j * 2 * int64_t{head_dim};
        for (int i = 0; i < n_q; i += q_group) {
            const float* qi = q + i * int64_t{stride};
            switch (n_q - i) {
                case 1:
                    attend_block<1>(qi, head_dim, at, n, state + i);
                    break;
                case 2:
                    attend_block<2>(qi, head_dim, at, n, state + i);
                    break;
                case 3:
                    attend_block<3>(qi, head_dim, at, n, state + i);
                    break;
                default:
                    attend_block<4>(qi, head_dim, at, n, state + i);
            }
        }
    }
}

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

void product(const float* a, int64_t a_row, int64_t a_col, const float* b, int m_total, int depth, int n,
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

void widen_rows(const uint16_t* rows, int n, int head_dim, float* keys, float* values) {
    const int stride = padded(head_dim);
    for (int j = 0; j < n; ++j) {
        const uint16_t* row = rows + j * 2 * int64_t{head_dim};
        for (int d = 0; d < head_dim; d += LANES) {
            store(keys + j * stride + d, load_half_any(row + d, head_dim - d));
            store(values + j * stride + d, load_half_any(row + head_dim + d, head_dim - d));
        }
    }
}

// scores [n][n_q]: position first + j is hidden from the queries that see fewer.
void hide_future(float* scores, int n, int n_q, int first, const int32_t* n_visible) {
    for (int j = 0; j < n; ++j) {
        for (int i = 0; i < n_q; ++i) {
            if (first + j >= n_visible[i]) scores[j * n_q + i] = minus_infinity;
        }
    }
}

// One vector of queries: scores become weights, and scale is what earlier sums must be multiplied by.
void soften_columns(float* scores, int n, int n_q, float* top, float* sum, float* scale) {
    const vf old_top = load(top);
    vf new_top = old_top;
    for (int j = 0; j < n; ++j) new_top = max(new_top, load(scores + int64_t{j} * n_q));
    const vf factor = exp(sub(old_top, new_top));
    vf total = mul(load(sum), factor);
    for (int j = 0; j < n; ++j) {
        const vf weight = exp(sub(load(scores + int64_t{j} * n_q), new_top));
        store(scores + int64_t{j} * n_q, weight);
        total = add(total, weight);
    }
    store(top, new_top);
    store(sum, total);
    store(scale, factor);
}

void tile(const float* qt, int n_q, int head_dim, const uint16_t* rows, const int32_t* n_visible, float* out_t,
          float* scratch) {
    const int n = padded(n_q), stride = padded(head_dim);
    float* keys = scratch;
    float* values = keys + kv_tile * stride;
    float* scores = values + kv_tile * stride;
    float* top = scores + kv_tile * max_queries;
    float* sum = top + max_queries;
    float* scale = sum + max_queries;
    for (int i = 0; i < n; ++i) {
        top[i] = minus_infinity;
        sum[i] = 0;
    }
    for (int d = 0; d < head_dim; ++d) {
        for (int i = 0; i < n; i += LANES) store(out_t + d * n + i, zero());
    }
    const int n_pos = n_visible[n_q - 1];
    for (int first = 0; first < n_pos; first += kv_tile) {
        const int n_tile = n_pos - first < kv_tile ? n_pos - first : kv_tile;
        widen_rows(rows + first * 2 * int64_t{head_dim}, n_tile, head_dim, keys, values);
        product(keys, stride, 1, qt, n_tile, head_dim, n, nullptr, scores);
        if (first + n_tile > n_visible[0]) hide_future(scores, n_tile, n, first, n_visible);
        for (int i = 0; i < n; i += LANES) soften_columns(scores + i, n_tile, n, top + i, sum + i, scale + i);
        product(values, 1, stride, scores, head_dim, n_tile, n, scale, out_t);
    }
    for (int i = 0; i < n; i += LANES) {
        const vf share = div(set1(1.0f), load(sum + i));
        for (int d = 0; d < head_dim; ++d) store(out_t + d * n + i, mul(load(out_t + d * n + i), share));
    }
}

}  // namespace

extern const AttentionKernels attention;
const AttentionKernels attention = {chunk, tile};

}  // namespace fasa::cpu::FASA_ISA
