// Dense attention with vectors. Decode streams the cache once and is bound by memory; prefill is two small matrix
// products per tile with lanes = queries, so that the softmax needs no horizontal step and nothing is transposed.
#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/isa/codes.h"
#include "backend/cpu/isa/product.h"

namespace fasa::cpu::FASA_ISA {
namespace {

constexpr int block = 32;             // positions scored before their values are added: their rows stay in L1
constexpr int q_group = 4;            // queries that share one conversion of a key
constexpr int prefetch_bytes = 4096;  // how far ahead rows are fetched: memory latency times bandwidth
constexpr int prefetch_rows = 4;      // the same for listed rows
constexpr float minus_infinity = -__builtin_inff();

// Row j of a block that starts at position `first`, or the j-th of a list.
int64_t position(const int32_t* positions, int first, int j) { return positions ? positions[j] : int64_t{first} + j; }

// sum[i] += q[i] · key over n values.
template <int N>
void add_dots(const float* q, int stride, const uint16_t* key, int n, vf (&sum)[N]) {
    for (int d = 0; d < n; d += LANES) {
        const vf k = load_half_any(key + d, n - d);
        for (int i = 0; i < N; ++i) sum[i] = fma(k, load(q + i * stride + d), sum[i]);
    }
}

// A row some way ahead: the next ones of the cache, harmless past its end, or those that the list names.
void prefetch_row(const KvHead& kv, const int32_t* positions, int first, int j, int n) {
    const int64_t row_bytes = 2 * kv.row_values();
    const char* row = reinterpret_cast<const char*>(kv.rest) + position(nullptr, first, j) * row_bytes + prefetch_bytes;
    if (positions) {
        if (j + prefetch_rows >= n) return;
        row = reinterpret_cast<const char*>(kv.rest) + positions[j + prefetch_rows] * row_bytes;
        if (kv.n_dom > 0) __builtin_prefetch(kv.dom + positions[j + prefetch_rows] * int64_t{kv.n_dom});
    }
    for (int64_t line = 0; line < row_bytes; line += 64) __builtin_prefetch(row + line);
}

// scores[i][j] of n positions for N queries.
template <int N>
void score_block(const float* q, const KvHead& kv, const int32_t* positions, int first, int n, float (*scores)[block]) {
    const int stride = query_stride(kv.n_dom, kv.head_dim);
    for (int j = 0; j < n; ++j) {
        const int64_t pos = position(positions, first, j);
        prefetch_row(kv, positions, first, j, n);
        vf sum[N];
        for (int i = 0; i < N; ++i) sum[i] = zero();
        add_dots<N>(q, stride, kv.dom + pos * kv.n_dom, kv.n_dom, sum);
        add_dots<N>(q + padded(kv.n_dom), stride, kv.rest + pos * kv.row_values(), kv.n_rest(), sum);
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
void add_values(const KvHead& kv, const int32_t* positions, int first, int n, const float (*weights)[block],
                SoftmaxState* state) {
    const uint16_t* values = kv.rest + kv.n_rest();
    for (int d = 0; d < kv.head_dim; d += LANES) {
        vf sum[N];
        for (int i = 0; i < N; ++i) sum[i] = load(state[i].values + d);
        for (int j = 0; j < n; ++j) {
            const vf v = load_half_any(values + position(positions, first, j) * kv.row_values() + d, kv.head_dim - d);
            for (int i = 0; i < N; ++i) sum[i] = fma(set1(weights[i][j]), v, sum[i]);
        }
        for (int i = 0; i < N; ++i) store(state[i].values + d, sum[i]);
    }
}

template <int N>
void attend_block(const float* q, const KvHead& kv, const int32_t* positions, int first, int n, SoftmaxState* state) {
    alignas(64) float scores[N][block];
    score_block<N>(q, kv, positions, first, n, scores);
    for (int i = 0; i < N; ++i) soften_block(scores[i], n, kv.head_dim, state[i]);
    add_values<N>(kv, positions, first, n, scores, state);
}

void chunk(const float* q, int n_q, const KvHead& kv, const int32_t* positions, int n_pos, SoftmaxState* state) {
    const int64_t stride = query_stride(kv.n_dom, kv.head_dim);
    for (int i = 0; i < n_q; ++i) {
        state[i].max = minus_infinity;
        state[i].sum = 0;
        for (int d = 0; d < kv.head_dim; d += LANES) store(state[i].values + d, zero());
    }
    for (int j = 0; j < n_pos; j += block) {
        const int n = n_pos - j < block ? n_pos - j : block;
        const int32_t* at = positions ? positions + j : nullptr;
        for (int i = 0; i < n_q; i += q_group) {
            const float* qi = q + i * stride;
            switch (n_q - i) {
                case 1:
                    attend_block<1>(qi, kv, at, j, n, state + i);
                    break;
                case 2:
                    attend_block<2>(qi, kv, at, j, n, state + i);
                    break;
                case 3:
                    attend_block<3>(qi, kv, at, j, n, state + i);
                    break;
                default:
                    attend_block<4>(qi, kv, at, j, n, state + i);
            }
        }
    }
}

// n rows from position first as floats: keys (dominant dims, then the others) and values, [n][stride].
void widen_rows(const KvHead& kv, int first, int n, int stride, float* keys, float* values) {
    for (int j = 0; j < n; ++j) {
        const uint16_t* dom = kv.dom + (int64_t{first} + j) * kv.n_dom;
        const uint16_t* rest = kv.rest + (int64_t{first} + j) * kv.row_values();
        float* key = keys + j * stride;
        for (int d = 0; d < kv.n_dom; d += LANES) store(key + d, load_half_any(dom + d, kv.n_dom - d));
        for (int d = 0; d < kv.n_rest(); d += LANES) {
            store(key + kv.n_dom + d, load_half_any(rest + d, kv.n_rest() - d));
        }
        for (int d = 0; d < kv.head_dim; d += LANES) {
            store(values + j * stride + d, load_half_any(rest + kv.n_rest() + d, kv.head_dim - d));
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

void tile(const float* qt, int n_q, const KvHead& kv, const int32_t* n_visible, float* out_t, float* scratch) {
    const int head_dim = kv.head_dim, n = padded(n_q);
    const int stride = padded(head_dim) + max_lanes;  // the last store of a split key may reach past head_dim
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
        widen_rows(kv, first, n_tile, stride, keys, values);
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

// Where vectors of dominant dims come from: half precision, or codes without their scales.
struct HalfDims {
    static constexpr int64_t bytes(int n) { return 2 * n; }
    static vf load(const uint8_t* p) { return load_half(reinterpret_cast<const uint16_t*>(p)); }
};
template <DomType type>
struct CodeDims {
    static constexpr int64_t bytes(int n) { return code_bytes(type, n); }
    static vf load(const uint8_t* p) { return load_codes<type>(p); }
};

// Dots of four positions with V whole vectors of dominant dims, so that their horizontal sums overlap.
template <int V, class Dims>
void score_dominant(const float* q, const void* dom, int n_pos, float* out) {
    constexpr int64_t row_bytes = Dims::bytes(V * LANES);
    vf query[V];
    for (int v = 0; v < V; ++v) query[v] = load(q + v * LANES);
    const auto score = [&](const uint8_t* key) {
        vf sum = mul(query[0], Dims::load(key));
        for (int v = 1; v < V; ++v) sum = fma(query[v], Dims::load(key + Dims::bytes(v * LANES)), sum);
        return sum;
    };
    const auto* rows = static_cast<const uint8_t*>(dom);
    int j = 0;
    for (; j + 4 <= n_pos; j += 4) {
        const uint8_t* key = rows + j * row_bytes;
        for (int line = 0; line < 4 * row_bytes; line += 64) __builtin_prefetch(key + prefetch_bytes + line);
        reduce_add4(score(key), score(key + row_bytes), score(key + 2 * row_bytes), score(key + 3 * row_bytes),
                    out + j);
    }
    for (; j < n_pos; ++j) out[j] = reduce_add(score(rows + j * row_bytes));
}

// out[j] *= scale[j]
void multiply(float* out, const uint16_t* scale, int n) {
    int j = 0;
    for (; j + LANES <= n; j += LANES) store(out + j, mul(load(out + j), load_half(scale + j)));
    if (j < n) store_first(out + j, mul(load_first(out + j, n - j), load_half_first(scale + j, n - j)), n - j);
}

template <DomType type>
void score_codes(const float* q, const KeyCodes& codes, int n_pos, float* out) {
    switch (codes.n) {
        case LANES:
            score_dominant<1, CodeDims<type>>(q, codes.code, n_pos, out);
            break;
        case 2 * LANES:
            score_dominant<2, CodeDims<type>>(q, codes.code, n_pos, out);
            break;
        case 4 * LANES:
            score_dominant<4, CodeDims<type>>(q, codes.code, n_pos, out);
            break;
        default:
            for (int j = 0; j < n_pos; ++j) {
                const uint8_t* row = codes.code + j * codes.row_bytes();
                vf sum = zero();
                for (int d = 0; d < codes.n; d += LANES) {
                    sum = fma(load(q + d), load_codes_any<type>(row + code_bytes(type, d), codes.n - d), sum);
                }
                out[j] = reduce_add(sum);
            }
    }
    multiply(out, codes.scale, n_pos);
}

void scores(const float* q, const KvHead& kv, int first, int n_pos, bool whole_key, float* out) {
    const uint16_t* dom = kv.dom + int64_t{first} * kv.n_dom;
    if (!whole_key && kv.codes.n > 0) {
        const KeyCodes codes = kv.codes.at(first);
        return (codes.type == DomType::q4 ? score_codes<DomType::q4> : score_codes<DomType::int8>)(q, codes, n_pos,
                                                                                                   out);
    }
    if (!whole_key) {
        switch (kv.n_dom) {
            case LANES:
                return score_dominant<1, HalfDims>(q, dom, n_pos, out);
            case 2 * LANES:
                return score_dominant<2, HalfDims>(q, dom, n_pos, out);
            case 4 * LANES:
                return score_dominant<4, HalfDims>(q, dom, n_pos, out);
        }
    }
    const float* q_rest = q + padded(kv.n_dom);
    for (int j = 0; j < n_pos; ++j) {
        const int64_t pos = int64_t{first} + j;
        vf sum[1] = {zero()};
        add_dots<1>(q, 0, kv.dom + pos * kv.n_dom, kv.n_dom, sum);
        if (whole_key) add_dots<1>(q_rest, 0, kv.rest + pos * kv.row_values(), kv.n_rest(), sum);
        out[j] = reduce_add(sum[0]);
    }
}

}  // namespace

extern const AttentionKernels attention;
const AttentionKernels attention = {chunk, tile, scores};

}  // namespace fasa::cpu::FASA_ISA
