// Products of quantised weights with many tokens. In a panel one vector holds four consecutive bytes of LANES rows;
// every step multiplies it by four values of a token, broadcast, so that the sums of a row stay in its lane.
#include "backend/cpu/block_dispatch.h"
#include "backend/cpu/isa/mat_tiles.h"
#include "backend/cpu/isa/quant_tile.h"

namespace fasa::cpu::FASA_ISA {

namespace {

constexpr int VECTOR_BYTES = 4 * LANES;
constexpr int V = MAT_V;

#if defined(__AVX512F__)
constexpr int N_TOKENS = 6;  // in the innermost loop; V * N_TOKENS sums twice fill the registers

// Four products a lane of unsigned activations a + 128 and signed bytes w, summed as 32-bit integers. What the bias
// adds is known beforehand: the sums start below zero by as much.
inline vi dot_start(vi byte_sums) { return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(byte_sums, 7)); }
inline vi add_bytes(vi sums, vi w) { return _mm512_dpbusd_epi32(sums, splat(0x01010101), w); }

template <class Format>
constexpr int N_PARTIAL = Format::group / 4;  // steps whose sums can be kept in a part
inline vi part_start(vi sums) { return sums; }
template <class Format>
inline vi part_add(vi part, vi a, vi w) {
    return _mm512_dpbusd_epi32(part, a, w);
}
inline vi part_end(vi, vi part) { return part; }
#else
constexpr int N_TOKENS = 4;

// Two products a lane as 16-bit integers, of |w| and the activation with the sign of w; nothing is biased, as two
// products of full bytes would not fit. A part is the sum of four steps where that fits.
inline vi dot_start(vi) { return _mm256_setzero_si256(); }
inline vi add_bytes(vi sums, vi) { return sums; }

template <class Format>
constexpr int N_PARTIAL = 4 * 2 * 127 * Format::largest <= 32767 ? 4 : 1;
inline vi part_start(vi) { return _mm256_setzero_si256(); }
template <class Format>
inline vi part_add(vi part, vi a, vi w) {
    if constexpr (Format::has_offset) return _mm256_add_epi16(part, _mm256_maddubs_epi16(w, a));  // w is not negative
    return _mm256_add_epi16(part, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)));
}
inline vi part_end(vi sums, vi part) { return _mm256_add_epi32(sums, _mm256_madd_epi16(part, _mm256_set1_epi16(1))); }
#endif

// What a panel holds of a group: [scale][start of the integer sums][offset, if any][bytes of each four values], each a
// row of V vectors.
template <class Block>
struct Panel {
    using Format = Tiled<Block>;
    static constexpr int group = Format::group, n_steps = group / 4;
    static constexpr int first_bytes = Format::has_offset ? 3 : 2;
    static constexpr size_t row = V * VECTOR_BYTES, group_bytes = (first_bytes + n_steps) * row;
};

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

template <class Block>
struct QuantizedKernel {
    using P = Panel<Block>;
    using Format = typename P::Format;
    static constexpr int64_t span = 512;
    static constexpr int n_tokens = N_TOKENS;
    static_assert(span % Format::size == 0 && span / P::group * P::group_bytes <= PANEL_BYTES);

    static void unpack(const WeightView& w, int64_t r, int64_t k, int64_t n, uint8_t* panel) {
        const uint8_t* first = row(w, r) + static_cast<size_t>(k / Format::size) * sizeof(Block);
        const TileRows rows(w, r);
        constexpr int n_groups = Format::size / Format::group;
        for (int v = 0; v < V; ++v) {
            const vi offsets = load_ints(rows.offsets[v]);
            for (size_t b = 0; b < static_cast<size_t>(n / Format::size); ++b) {
                PanelWriter<Block> out{panel + b * n_groups * P::group_bytes + v * VECTOR_BYTES};
                Format::unpack(Column<Block>{first + b * sizeof(Block), offsets}, out);
                for (int g = 0; g < n_groups; ++g) out.finish(g);
            }
        }
    }

    template <int N>
    static void multiply(const uint8_t* panel, int64_t n, const LinearJob& job, int64_t first, int64_t k, float* sums) {
        const int64_t n_in = job.out.w.n_in;
        const Activations a = from(job.a, first * n_in + k);
        const float* x_sums = P::group == 32 ? a.s32 : a.s16;
        vf acc[N][V];
        for (int i = 0; i < N; ++i) {
            for (int v = 0; v < V; ++v) acc[i][v] = load(sums + i * MAT_TILE + v * LANES);
        }
        for (int64_t g = 0; g < n / P::group; ++g, panel += P::group_bytes) {
            const auto at = [&](int r, int v) { return panel + r * P::row + v * VECTOR_BYTES; };
            vi dots[N][V];
            for (int i = 0; i < N; ++i) {
                for (int v = 0; v < V; ++v) dots[i][v] = load_ints(at(1, v));
            }
            for (int from_step = 0; from_step < P::n_steps; from_step += N_PARTIAL<Format>) {
                vi parts[N][V];
                for (int i = 0; i < N; ++i) {
                    for (int v = 0; v < V; ++v) parts[i][v] = part_start(dots[i][v]);
                }
                for (int step = from_step; step < from_step + N_PARTIAL<Format>; ++step) {
                    vi w[V];
                    for (int v = 0; v < V; ++v) w[v] = load_ints(at(P::first_bytes + step, v));
                    for (int i = 0; i < N; ++i) {
                        const vi x = splat(load_u32(a.q + i * n_in + g * P::group + step * 4));
                        for (int v = 0; v < V; ++v) parts[i][v] = part_add<Format>(parts[i][v], x, w[v]);
                    }
                }
                for (int i = 0; i < N; ++i) {
                    for (int v = 0; v < V; ++v) dots[i][v] = part_end(dots[i][v], parts[i][v]);
                }
            }
            for (int v = 0; v < V; ++v) {
                const vf scale = load(reinterpret_cast<const float*>(at(0, v)));
                for (int i = 0; i < N; ++i) {
                    const vf d = mul(scale, set1(a.d[i * (n_in / 32) + g * P::group / 32]));
                    acc[i][v] = fma(to_floats(dots[i][v]), d, acc[i][v]);
                }
                if constexpr (Format::has_offset) {
                    const vf offset = load(reinterpret_cast<const float*>(at(2, v)));
                    for (int i = 0; i < N; ++i) {
                        acc[i][v] = fma(offset, set1(x_sums[i * (n_in / P::group) + g]), acc[i][v]);
                    }
                }
            }
        }
        for (int i = 0; i < N; ++i) {
            for (int v = 0; v < V; ++v) store(sums + i * MAT_TILE + v * LANES, acc[i][v]);
        }
    }
};

}  // namespace

void mat_quantized(const LinearJob& job, int64_t begin, int64_t end, void* scratch) {
    with_block(job.out.w.dtype, [&]<class Block>() { mat_product<QuantizedKernel<Block>>(job, begin, end, scratch); });
}

}  // namespace fasa::cpu::FASA_ISA
