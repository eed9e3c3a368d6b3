// Products with weights in F32, F16 and BF16, in float.
#include "backend/cpu/isa/mat_tiles.h"
#include "backend/cpu/isa/vector_ints.h"

namespace fasa::cpu::FASA_ISA {

namespace {

// A format of weights: `get` and `get_first` load along a row, `columns` columns k .. of LANES rows at once.
struct F32 {
    using Value = float;
    static constexpr int columns = 1;  // that one gathered word holds
    static vf get(const float* p) { return load(p); }
    static vf get_first(const float* p, int n) { return load_first(p, n); }
    static vf column(vi word, int) { return as_floats(word); }
};
struct F16 {
    using Value = uint16_t;
    static constexpr int columns = 2;
    static vf get(const uint16_t* p) { return load_half(p); }
    static vf get_first(const uint16_t* p, int n) { return load_half_first(p, n); }
    static vf column(vi word, int i) { return half_floats(shift_right(word, 16 * i)); }
};
struct Bf16 {
    using Value = uint16_t;
    static constexpr int columns = 2;
    static vf get(const uint16_t* p) { return load_bfloat(p); }
    static vf get_first(const uint16_t* p, int n) { return load_bfloat_first(p, n); }
    static vf column(vi word, int i) { return as_floats(shift_left(shift_right(word, 16 * i), 16)); }
};

template <class Format>
float dot(const typename Format::Value* w, const float* x, int64_t n) {
    vf acc[4] = {zero(), zero(), zero(), zero()};
    int64_t k = 0;
    for (; k + 4 * LANES <= n; k += 4 * LANES) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(w + k);
        for (size_t i = 0; i < 4 * LANES * sizeof(w[0]); i += 64) prefetch(bytes + i);
        for (int j = 0; j < 4; ++j) acc[j] = fma(Format::get(w + k + j * LANES), load(x + k + j * LANES), acc[j]);
    }
    for (; k + LANES <= n; k += LANES) acc[0] = fma(Format::get(w + k), load(x + k), acc[0]);
    if (k < n) {
        const int rest = static_cast<int>(n - k);
        acc[1] = fma(Format::get_first(w + k, rest), load_first(x + k, rest), acc[1]);
    }
    return reduce_add(add(add(acc[0], acc[1]), add(acc[2], acc[3])));
}

template <class Format>
void rows(const LinearJob& job, int64_t begin, int64_t end) {
    const WeightView& w = job.out.w;
    for (int64_t r = begin; r < end; ++r) {
        const auto* values = reinterpret_cast<const typename Format::Value*>(row(w, r));
        for (int64_t i = 0; i < job.n; ++i) put(job.out, r, i, dot<Format>(values, job.x + i * w.n_in, w.n_in));
    }
}

// A panel holds a vector of columns after the other: [n][MAT_TILE].
template <class Format>
struct FloatKernel {
    using Value = typename Format::Value;
    static constexpr int64_t span = PANEL_BYTES / MAT_TILE / sizeof(float);
    static constexpr int n_tokens = 6;

    static void unpack(const WeightView& w, int64_t r, int64_t k, int64_t n, uint8_t* panel) {
        const uint8_t* first = row(w, r) + static_cast<size_t>(k) * sizeof(Value);
        const TileRows rows(w, r);
        auto* out = reinterpret_cast<float*>(panel);
        for (int v = 0; v < MAT_V; ++v) {
            const vi offsets = load_ints(rows.offsets[v]);
            for (int64_t j = 0; j < n; ++j) {
                // An odd last column is the upper part of the word before it, since the row may end the file.
                const int64_t word =
                    j + Format::columns <= n ? j / Format::columns * Format::columns : n - Format::columns;
                const vi values = gather(first + word * static_cast<int64_t>(sizeof(Value)), offsets);
                store(out + j * MAT_TILE + v * LANES, Format::column(values, static_cast<int>(j - word)));
            }
        }
    }

    template <int N>
    static void multiply(const uint8_t* panel, int64_t n, const LinearJob& job, int64_t first, int64_t k, float* sums) {
        const int64_t n_in = job.out.w.n_in;
        const float* x = job.x + first * n_in + k;
        const auto* w = reinterpret_cast<const float*>(panel);
        vf acc[N][MAT_V];
        for (int i = 0; i < N; ++i) {
            for (int v = 0; v < MAT_V; ++v) acc[i][v] = load(sums + i * MAT_TILE + v * LANES);
        }
        for (int64_t j = 0; j < n; ++j, w += MAT_TILE) {
            for (int i = 0; i < N; ++i) {
                const vf xi = set1(x[i * n_in + j]);
                for (int v = 0; v < MAT_V; ++v) acc[i][v] = fma(load(w + v * LANES), xi, acc[i][v]);
            }
        }
        for (int i = 0; i < N; ++i) {
            for (int v = 0; v < MAT_V; ++v) store(sums + i * MAT_TILE + v * LANES, acc[i][v]);
        }
    }
};

}  // namespace

void vec_float(const LinearJob& job, int64_t begin, int64_t end) {
    switch (job.out.w.dtype) {
        case FASA_DTYPE_F32:
            return rows<F32>(job, begin, end);
        case FASA_DTYPE_F16:
            return rows<F16>(job, begin, end);
        default:
            return rows<Bf16>(job, begin, end);
    }
}

void mat_float(const LinearJob& job, int64_t begin, int64_t end, void* scratch) {
    if (job.out.w.n_in < 2) return vec_float(job, begin, end);  // a gathered word would reach beyond the row
    switch (job.out.w.dtype) {
        case FASA_DTYPE_F32:
            return mat_product<FloatKernel<F32>>(job, begin, end, scratch);
        case FASA_DTYPE_F16:
            return mat_product<FloatKernel<F16>>(job, begin, end, scratch);
        default:
            return mat_product<FloatKernel<Bf16>>(job, begin, end, scratch);
    }
}

}  // namespace fasa::cpu::FASA_ISA
