// Products along rows of quantised weights, straight from the file's blocks: bound by memory when they are cold.
#include "backend/cpu/block_dispatch.h"
#include "backend/cpu/isa/linear.h"
#include "backend/cpu/isa/quant_vec.h"

namespace fasa::cpu::FASA_ISA {

namespace {

inline float sum(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

template <class Format>
inline __m256 dot(__m256i q, const int8_t* a) {
    return _mm256_cvtepi32_ps(Format::is_signed ? dot_signed(q, load_bytes(a)) : dot_unsigned(q, load_bytes(a)));
}

// The scales of run I (32 values) of a super-block, one for each of eight sums of four products.
template <int GROUP, int I>
inline __m256 spread(const float* scale) {
    if constexpr (GROUP == 32) return _mm256_set1_ps(scale[I]);
    constexpr int first = I % 4 * 2, second = first + 1;
    return _mm256_permutevar8x32_ps(_mm256_load_ps(scale + I / 4 * 8),
                                    _mm256_setr_epi32(first, first, first, first, second, second, second, second));
}

// One row's product in the making.
struct Row {
    const uint8_t* w;
    __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                     _mm256_setzero_ps()};  // four chains hide the latency of the multiply-add
    float rest = 0;

    template <class Block, int I>
    void add_run(const Block& block, const int8_t* a, const float* scale) {
        using Format = Super<Block>;
        const __m256 products = dot<Format>(Format::template bytes<I>(block), a + 32 * I);
        acc[I % 4] = _mm256_fmadd_ps(products, spread<Format::group, I>(scale), acc[I % 4]);
    }

    template <class Block>
    void add_super(const Activations& a) {
        using Format = Super<Block>;
        constexpr int n_vectors = QK_K / Format::group / 8;
        const Block& block = *reinterpret_cast<const Block*>(w);
        for (size_t i = 0; i < sizeof(Block); i += 64) prefetch(w + i);
        __m256 d[n_vectors], offset[n_vectors];
        Format::scales(block, d, offset);
        if constexpr (Format::has_offset) {
            const float* sums = Format::group == 32 ? a.s32 : a.s16;
            for (int i = 0; i < n_vectors; ++i)
                acc[i] = _mm256_fmadd_ps(offset[i], _mm256_loadu_ps(sums + 8 * i), acc[i]);
        }
        alignas(32) float scale[8 * n_vectors];
        const __m256 da = _mm256_loadu_ps(a.d);
        if constexpr (Format::group == 32) {
            _mm256_store_ps(scale, _mm256_mul_ps(d[0], da));
        } else {
            const __m256i low = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3),
                          high = _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7);
            _mm256_store_ps(scale, _mm256_mul_ps(d[0], _mm256_permutevar8x32_ps(da, low)));
            _mm256_store_ps(scale + 8, _mm256_mul_ps(d[1], _mm256_permutevar8x32_ps(da, high)));
        }
        // Each scale is to be a broadcasting load; compilers that see the stores make two shuffles of it.
        asm("" : "+m"(scale));
        add_run<Block, 0>(block, a.q, scale);
        add_run<Block, 1>(block, a.q, scale);
        add_run<Block, 2>(block, a.q, scale);
        add_run<Block, 3>(block, a.q, scale);
        add_run<Block, 4>(block, a.q, scale);
        add_run<Block, 5>(block, a.q, scale);
        add_run<Block, 6>(block, a.q, scale);
        add_run<Block, 7>(block, a.q, scale);
        w += sizeof(Block);
    }

    // One block of a simple format.
    template <class Block>
    void add_simple(const Activations& a) {
        using Format = Simple<Block>;
        const Block& block = *reinterpret_cast<const Block*>(w);
        const float d = half(block.d);
        acc[0] = _mm256_fmadd_ps(dot<Format>(Format::bytes(block), a.q), _mm256_set1_ps(d * a.d[0]), acc[0]);
        if constexpr (Format::has_offset) rest += simple_offset(block) * a.s32[0];
        w += sizeof(Block);
    }

    float result() const {
        return sum(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]))) + rest;
    }
};

// One row after the other: a single stream is what the memory system fetches best.
template <class Block>
void dot_rows(const LinearJob& job, int64_t begin, int64_t end) {
    const WeightView& weights = job.out.w;
    for (int64_t r = begin; r < end; ++r) {
        for (int64_t i = 0; i < job.n; ++i) {
            Row dot{row(weights, r)};
            Activations a = from(job.a, i * weights.n_in);
            int64_t k = weights.n_in;
            for (; k >= QK_K; k -= QK_K, a = from(a, QK_K)) dot.add_super<SuperOf<Block>>(a);
            if constexpr (is_simple<Block>) {
                for (; k > 0; k -= QK, a = from(a, QK)) dot.add_simple<Block>(a);
            }
            put(job.out, r, i, dot.result());
        }
    }
}

}  // namespace

void vec_quantized(const LinearJob& job, int64_t begin, int64_t end) {
    with_block(job.out.w.dtype, [&]<class Block>() { dot_rows<Block>(job, begin, end); });
}

}  // namespace fasa::cpu::FASA_ISA
