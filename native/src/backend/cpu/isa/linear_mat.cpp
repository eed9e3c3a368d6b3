// Products of quantised weights with many tokens. A tile of rows is unpacked once into a panel of bytes in which one
// vector holds four consecutive values of LANES rows; then every step multiplies it by four values of a token,
// broadcast, and the sums of a row stay in its lane. Panels span SPAN values of the input so that they stay in the
// first-level cache while all tokens pass by.
#include "backend/cpu/isa/linear.h"
#include "backend/cpu/isa/quant_tile.h"

namespace fasa::cpu::FASA_ISA {

namespace {

constexpr int VECTOR_BYTES = 4 * LANES;
constexpr int V = MAT_V, TILE = MAT_TILE;

#if defined(__AVX512F__)
constexpr int N_TOKENS = 6;  // in the innermost loop; V * N_TOKENS sums twice fill the registers

// Four products a lane of biased activations a + 128 and signed bytes w, added to sums that begin at `start`.
inline vi dot_start(vi byte_sums) { return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(byte_sums, 7)); }
template <bool NEVER_NEGATIVE>
inline vi dot(vi sums, vi a, vi w) {
    return _mm512_dpbusd_epi32(sums, a, w);
}
inline vi add_bytes(vi sums, vi w) { return _mm512_dpbusd_epi32(sums, splat(0x01010101), w); }
inline vi load_ints(const void* p) { return _mm512_load_si512(p); }
inline void store_ints(void* p, vi x) { _mm512_store_si512(p, x); }
#else
constexpr int N_TOKENS = 4;

// Activations are not biased here, as two products of full bytes would not fit 16 bits.
inline vi dot_start(vi) { return _mm256_setzero_si256(); }
template <bool NEVER_NEGATIVE>
inline vi dot(vi sums, vi a, vi w) {
    const vi pairs =
        NEVER_NEGATIVE ? _mm256_maddubs_epi16(w, a) : _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline vi add_bytes(vi sums, vi) { return sums; }
inline vi load_ints(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
inline void store_ints(void* p, vi x) { _mm256_store_si256(static_cast<__m256i*>(p), x); }
#endif

constexpr int SPAN = 512;        // values of the input that a panel covers; a multiple of 256
constexpr int N_PANELS = 4;      // tiles that pass by the same activations before those are left for the next span
constexpr int MAX_TOKENS = 512;  // whose sums are kept at once

// What a panel holds of a group: [scale][start of the integer sums][offset, if any][bytes of each four values], each a
// row of V vectors.
template <class Block>
struct Panel {
    using Format = Tiled<Block>;
    static constexpr int group = Format::group, n_steps = group / 4;
    static constexpr int first_bytes = Format::has_offset ? 3 : 2;
    static constexpr size_t row = V * VECTOR_BYTES, group_bytes = (first_bytes + n_steps) * row;
};
constexpr size_t PANEL_BYTES = (3 + 4) * (SPAN / 16) * V * VECTOR_BYTES;  // the most that a format needs

// Receives one block of LANES rows.
template <class Block>
struct PanelWriter {
    using P = Panel<Block>;
    uint8_t* p;  // the block's first group, at this vector of rows

    void bytes(int g, int step, vi q) { store_ints(at(g, P::first_bytes + step), q); }
    void scale(int g, vf scale) { store(reinterpret_cast<float*>(at(g, 0)), scale); }
    void scale(int g, vf d, vf offset) {
        scale(g, d);
        store(reinterpret_cast<float*>(at(g, 2)), offset);
    }
    void finish(int g) {
        vi sums = splat(0);
        for (int step = 0; step < P::n_steps; ++step) sums = add_bytes(sums, load_ints(at(g, P::first_bytes + step)));
        store_ints(at(g, 1), dot_start(sums));
    }
    uint8_t* at(int g, int r) const {
        return p + static_cast<size_t>(g) * P::group_bytes + static_cast<size_t>(r) * P::row;
    }
};

// Values k .. k + n - 1 of rows r .. r + TILE - 1; beyond the last row, that row again.
template <class Block>
void unpack_panel(const WeightView& w, int64_t r, int64_t k, int64_t n, uint8_t* panel) {
    using Format = Tiled<Block>;
    const uint8_t* first = row(w, r) + static_cast<size_t>(k / Format::size) * sizeof(Block);
    for (int v = 0; v < V; ++v) {
        alignas(64) int32_t offsets[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t last = w.n_out - 1 - r, i = v * LANES + lane;
            offsets[lane] = static_cast<int32_t>((i < last ? i : last) * static_cast<int64_t>(w.row_bytes));
        }
        for (int64_t b = 0; b < n / Format::size; ++b) {
            constexpr int n_groups = Format::size / Format::group;
            PanelWriter<Block> out{panel + static_cast<size_t>(b * n_groups) * Panel<Block>::group_bytes +
                                   v * VECTOR_BYTES};
            Format::unpack(Column<Block>{first + static_cast<size_t>(b) * sizeof(Block), load_ints(offsets)}, out);
            for (int g = 0; g < n_groups; ++g) out.finish(g);
        }
    }
}

// Adds the products of a panel with N tokens to sums [N][TILE].
template <class Block, int N>
void multiply(const uint8_t* panel, int64_t n_groups, const Activations& a, int64_t n_in, float* sums) {
    using P = Panel<Block>;
    constexpr bool has_offset = P::Format::has_offset;
    vf acc[N][V];
    for (int i = 0; i < N; ++i) {
        for (int v = 0; v < V; ++v) acc[i][v] = load(sums + i * TILE + v * LANES);
    }
    const float* x_sums = P::group == 32 ? a.s32 : a.s16;
    for (int64_t g = 0; g < n_groups; ++g, panel += P::group_bytes) {
        const auto at = [&](int r, int v) { return panel + r * P::row + v * VECTOR_BYTES; };
        vi dots[N][V];
        for (int i = 0; i < N; ++i) {
            for (int v = 0; v < V; ++v) dots[i][v] = load_ints(at(1, v));
        }
        for (int step = 0; step < P::n_steps; ++step) {
            vi w[V];
            for (int v = 0; v < V; ++v) w[v] = load_ints(at(P::first_bytes + step, v));
            for (int i = 0; i < N; ++i) {
                uint32_t four;
                __builtin_memcpy(&four, a.q + i * n_in + g * P::group + step * 4, 4);
                const vi x = splat(four);
                for (int v = 0; v < V; ++v) dots[i][v] = dot<has_offset>(dots[i][v], x, w[v]);
            }
        }
        for (int v = 0; v < V; ++v) {
            const vf scale = load(reinterpret_cast<const float*>(at(0, v)));
            for (int i = 0; i < N; ++i) {
                const vf d = mul(scale, set1(a.d[i * (n_in / 32) + g * P::group / 32]));
                acc[i][v] = fma(to_floats(dots[i][v]), d, acc[i][v]);
            }
            if constexpr (has_offset) {
                const vf offset = load(reinterpret_cast<const float*>(at(2, v)));
                for (int i = 0; i < N; ++i) acc[i][v] = fma(offset, set1(x_sums[i * (n_in / P::group) + g]), acc[i][v]);
            }
        }
    }
    for (int i = 0; i < N; ++i) {
        for (int v = 0; v < V; ++v) store(sums + i * TILE + v * LANES, acc[i][v]);
    }
}

template <class Block, int N>
void multiply_last(const uint8_t* panel, int64_t n_groups, const Activations& a, int64_t n_in, int n, float* sums) {
    if (n == N) multiply<Block, N>(panel, n_groups, a, n_in, sums);
    if constexpr (N > 1) {
        if (n < N) multiply_last<Block, N - 1>(panel, n_groups, a, n_in, n, sums);
    }
}

// Tokens first .. first + n - 1 of up to N_PANELS tiles of rows.
template <class Block>
void tiles(const LinearJob& job, int64_t begin, int64_t end, int64_t first, int n, uint8_t* panel, float* sums) {
    const WeightView& w = job.out.w;
    const int64_t n_tiles = (end - begin + TILE - 1) / TILE;
    __builtin_memset(sums, 0, static_cast<size_t>(n_tiles * n) * TILE * sizeof(float));
    for (int64_t k = 0; k < w.n_in; k += SPAN) {
        const int64_t span = w.n_in - k < SPAN ? w.n_in - k : SPAN;
        for (int64_t t = 0; t < n_tiles; ++t) {
            unpack_panel<Block>(w, begin + t * TILE, k, span, panel);
            for (int i = 0; i < n; i += N_TOKENS) {
                const Activations a = from(job.a, (first + i) * w.n_in + k);
                multiply_last<Block, N_TOKENS>(panel, span / Tiled<Block>::group, a, w.n_in,
                                               n - i < N_TOKENS ? n - i : N_TOKENS, sums + (t * n + i) * TILE);
            }
        }
    }
    for (int64_t t = 0; t < n_tiles; ++t) {
        for (int i = 0; i < n; ++i) {
            const int64_t r = begin + t * TILE, n_rows = end - r < TILE ? end - r : TILE;
            put_row(job.out, r, n_rows, first + i, sums + (t * n + i) * TILE);
        }
    }
}

template <class Block>
void product(const LinearJob& job, int64_t begin, int64_t end, void* scratch) {
    auto* panel = static_cast<uint8_t*>(scratch);
    auto* sums = reinterpret_cast<float*>(panel + PANEL_BYTES);
    for (int first = 0; first < job.n; first += MAX_TOKENS) {
        const int n = job.n - first < MAX_TOKENS ? job.n - first : MAX_TOKENS;
        for (int64_t r = begin; r < end; r += N_PANELS * TILE) {
            tiles<Block>(job, r, end - r < N_PANELS * TILE ? end : r + N_PANELS * TILE, first, n, panel, sums);
        }
    }
}

}  // namespace

size_t mat_scratch_bytes(int64_t) { return PANEL_BYTES + size_t{N_PANELS} * MAX_TOKENS * TILE * sizeof(float); }

void mat_quantized(const LinearJob& job, int64_t begin, int64_t end, void* scratch) {
    switch (job.out.w.dtype) {
        case FASA_DTYPE_Q4_0:
            return product<BlockQ4_0>(job, begin, end, scratch);
        case FASA_DTYPE_Q4_1:
            return product<BlockQ4_1>(job, begin, end, scratch);
        case FASA_DTYPE_Q5_0:
            return product<BlockQ5_0>(job, begin, end, scratch);
        case FASA_DTYPE_Q5_1:
            return product<BlockQ5_1>(job, begin, end, scratch);
        case FASA_DTYPE_Q8_0:
            return product<BlockQ8_0>(job, begin, end, scratch);
        case FASA_DTYPE_IQ4_NL:
            return product<BlockIQ4_NL>(job, begin, end, scratch);
        case FASA_DTYPE_Q2_K:
            return product<BlockQ2_K>(job, begin, end, scratch);
        case FASA_DTYPE_Q3_K:
            return product<BlockQ3_K>(job, begin, end, scratch);
        case FASA_DTYPE_Q4_K:
            return product<BlockQ4_K>(job, begin, end, scratch);
        case FASA_DTYPE_Q5_K:
            return product<BlockQ5_K>(job, begin, end, scratch);
        case FASA_DTYPE_Q6_K:
            return product<BlockQ6_K>(job, begin, end, scratch);
        case FASA_DTYPE_IQ4_XS:
            return product<BlockIQ4_XS>(job, begin, end, scratch);
        default:
            return;
    }
}

}  // namespace fasa::cpu::FASA_ISA
