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

// The rows that the products of one op share.
struct LinearIn {
    const float* x = nullptr;     // [n][n_in]
    const float* norm = nullptr;  // [n_in]: rows are divided by their RMS and multiplied by this first; or nullptr
    float eps = 0;                // of the norm
    float* normed = nullptr;      // [n][n_in], room for normed rows; they need not be written
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

// How the dominant dims of a layer's keys are stored. In half precision they are apart from the rest of the key; coded,
// they are copies for ranking alone, and the whole exact key lies in the row with the value.
enum class DomType { f16, int8, q4 };

// Bytes of the codes of n dims, an even number.
inline constexpr int64_t code_bytes(DomType type, int64_t n) { return type == DomType::q4 ? n / 2 : n; }
// Codes go from minus this to this.
inline constexpr int largest_code(DomType type) { return type == DomType::q4 ? 7 : 127; }

// Coded copies of the leading n key dims of every position, with one scale a position. They follow from the key's half
// precision alone, bit for bit: scale = largest |dim| / largest_code, in half precision; code = dim times the float
// 1 / scale (0 for a scale of 0), to the nearest, ties to even, at most largest_code. Of a dim that is not finite:
// scale NaN, codes 0. int8: two's complement. q4: dim 2i in the low nibble of byte i, dim 2i + 1 in the high one, each
// plus 8.
struct KeyCodes {
    DomType type = DomType::f16;  // f16: there are none
    int32_t n = 0;
    uint8_t* code = nullptr;    // [n_ctx][code_bytes(type, n)]; of a layer [n_seq][n_head_kv][n_ctx][...]
    uint16_t* scale = nullptr;  // [n_ctx], half precision; of a layer [n_seq][n_head_kv][n_ctx]

    int64_t row_bytes() const { return code_bytes(type, n); }
    // From a row on, see KvView::row.
    KeyCodes at(int64_t row) const {
        return type == DomType::f16 ? KeyCodes{} : KeyCodes{type, n, code + row * row_bytes(), scale + row};
    }
};

// The keys and values of one KV head of a sequence, split by dimension [FASA §5]. `dom` holds the n_dom dominant key
// dims of every position, contiguous; `rest` one row a position: the other key dims, then the value. n_dom 0: no split.
struct KvHead {
    const uint16_t* dom;   // [n_ctx][n_dom], half precision
    const uint16_t* rest;  // [n_ctx][2 * head_dim - n_dom]
    int32_t n_dom, head_dim;
    KeyCodes codes = {};

    int32_t n_rest() const { return head_dim - n_dom; }  // key dims in a row; the value follows them
    int64_t row_values() const { return 2 * int64_t{head_dim} - n_dom; }
};

// The KV cache of one layer: for every sequence and KV head the two planes of KvHead, rotated keys.
struct KvView {
    uint16_t* dom = nullptr;         // [n_seq][n_head_kv][n_ctx][n_dom]
    uint16_t* rest = nullptr;        // [n_seq][n_head_kv][n_ctx][2 * head_dim - n_dom]
    const int16_t* order = nullptr;  // [n_head_kv][head_dim]: the file's dim stored at each place; nullptr: unchanged
    int32_t n_ctx = 0, n_head_kv = 0, head_dim = 0, n_dom = 0;
    int32_t host_layer = -1;  // which of the layers whose `rest` lies in host memory that ops reach; -1: none of them
    KeyCodes codes = {};      // n_dom is 0 where there are any

    int64_t row_values() const { return 2 * int64_t{head_dim} - n_dom; }
    int64_t row(int32_t seq, int32_t head_kv, int32_t pos) const {
        return (int64_t{seq} * n_head_kv + head_kv) * n_ctx + pos;
    }
    uint16_t* dom_at(int32_t seq, int32_t head_kv, int32_t pos) const { return dom + row(seq, head_kv, pos) * n_dom; }
    uint16_t* rest_at(int32_t seq, int32_t head_kv, int32_t pos) const {
        return rest + row(seq, head_kv, pos) * row_values();
    }
    KeyCodes codes_at(int32_t seq, int32_t head_kv, int32_t pos) const { return codes.at(row(seq, head_kv, pos)); }
    KvHead head(int32_t seq, int32_t head_kv) const {
        return {dom_at(seq, head_kv, 0), rest_at(seq, head_kv, 0), n_dom, head_dim, codes_at(seq, head_kv, 0)};
    }
    const int16_t* order_of(int32_t head_kv) const { return order ? order + int64_t{head_kv} * head_dim : nullptr; }

    bool is_coded() const { return codes.type != DomType::f16; }
    // Dominant dims, and the bytes of a position that ranking by them reads.
    int32_t n_dominant() const { return is_coded() ? codes.n : n_dom; }
    int64_t dominant_bytes() const { return is_coded() ? codes.row_bytes() + 2 : int64_t{2} * n_dom; }
};

// The positions that a decode step attends to: n_set lists (one a KV head or one a query head), ascending.
struct Selection {
    int32_t* positions = nullptr;  // [n_set][capacity]
    int32_t* count = nullptr;      // [n_set]
    int32_t n_set = 0, capacity = 0;

    int32_t* list(int32_t set) const { return positions + int64_t{set} * capacity; }
};

// How many positions of a list to keep: always the first n_sink and the last n_recent, then the best.
struct Budget {
    int32_t keep = 0, n_sink = 0, n_recent = 0;
};

// Queries [n_head][head_dim], dims in the order of the cache, of which sets of n_head / n_set consecutive heads score
// positions together: by the sum of their scores, which is the score of the sum of their queries.
struct SetQueries {
    const float* q = nullptr;
    const uint8_t* mask = nullptr;  // [n_head][head_dim], 0 where a dim does not count; nullptr: all count
    int32_t n_head = 0, n_set = 0;
};

// How positions are ranked, and how many of the best are kept.
struct Ranking {
    SetQueries queries;
    bool whole_key = false;  // else only the dominant dims count
    Budget budget;
    float* scores = nullptr;  // [n_set][n_ctx], room for scores; they need not be written
};

// What a page of keys is summed up by, for every dim: a high and a low bound.
enum class PageBounds {
    min_max,  // of the page's keys
    mean_std  // their mean plus and minus their standard deviation
};

enum class RopeLayout {
    interleaved,  // pair i is dims 2i, 2i + 1
    half_split    // pair i is dims i, i + n_rot / 2
};

// The angles of every position: position * frequency.
struct RopeView {
    RopeLayout layout = RopeLayout::interleaved;
    int32_t n_rot = 0;
    const double* frequency = nullptr;  // [n_rot / 2], radians per position, scaling included
    double magnitude = 1;               // factor on cosines and sines (YaRN)
};

// RMS norms of every query and key head before it is rotated; nullptr: none.
struct HeadNorm {
    const float* q = nullptr;  // [head_dim]
    const float* k = nullptr;
    float eps = 0;
};

// Rows of a batch with what they are.
struct Batch {
    Rows rows;
    const int32_t* tokens = nullptr;  // [rows.n], host memory
    int32_t n_pos_max = 0;            // no row's position comes up to this
    RopeView rope;
};

}  // namespace fasa
