// Products along rows of quantised weights, straight from the file's blocks: bound by memory when they are cold.
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

template <class Block>
struct SimpleRow {
    using Format = Simple<Block>;
    const Block* w;
    __m256 acc = _mm256_setzero_ps();
    float offsets = 0;

    static constexpr int size = 32;
    void add(const Activations& a, int64_t b) {
        const Block& block = w[b];
        const __m256 scale = _mm256_set1_ps(half(block.d) * a.d[0]);
        acc = _mm256_fmadd_ps(dot<Format>(Format::bytes(block), a.q), scale, acc);
        if constexpr (Format::has_offset) offsets += half(block.m) * a.s32[0];
    }
    float result() const { return sum(acc) + offsets; }
};

template <class Block>
struct SuperRow {
    using Format = Super<Block>;
    static constexpr int size = QK_K, group = Format::group, n_vectors = QK_K / group / 8;
    const Block* w;
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};  // two chains hide the latency of the multiply-add

    // The scales of 32 values, one for each of eight sums of four.
    template <int I>
    static __m256 spread(const __m256* scale) {
        if constexpr (group == 32) return _mm256_permutevar8x32_ps(scale[0], _mm256_set1_epi32(I));
        constexpr int first = I % 4 * 2, second = first + 1;
        return _mm256_permutevar8x32_ps(scale[I / 4 % n_vectors],
                                        _mm256_setr_epi32(first, first, first, first, second, second, second, second));
    }
    template <int I>
    void add_run(const Block& block, const int8_t* a, const __m256* scale) {
        const __m256 products = dot<Format>(Format::template bytes<I>(block), a + 32 * I);
        acc[I % 2] = _mm256_fmadd_ps(products, spread<I>(scale), acc[I % 2]);
    }
    void add(const Activations& a, int64_t b) {
        const Block& block = w[b];
        __m256 scale[n_vectors], offset[n_vectors];
        Format::scales(block, scale, offset);
        if constexpr (Format::has_offset) {
            const float* sums = group == 32 ? a.s32 : a.s16;
            for (int i = 0; i < n_vectors; ++i)
                acc[i] = _mm256_fmadd_ps(offset[i], _mm256_loadu_ps(sums + 8 * i), acc[i]);
        }
        const __m256 d = _mm256_loadu_ps(a.d);
        if constexpr (group == 32) {
            scale[0] = _mm256_mul_ps(scale[0], d);
        } else {
            scale[0] = _mm256_mul_ps(scale[0], _mm256_permutevar8x32_ps(d, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)));
            scale[1] = _mm256_mul_ps(scale[1], _mm256_permutevar8x32_ps(d, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7)));
        }
        add_run<0>(block, a.q, scale);
        add_run<1>(block, a.q, scale);
        add_run<2>(block, a.q, scale);
        add_run<3>(block, a.q, scale);
        add_run<4>(block, a.q, scale);
        add_run<5>(block, a.q, scale);
        add_run<6>(block, a.q, scale);
        add_run<7>(block, a.q, scale);
    }
    float result() const { return sum(_mm256_add_ps(acc[0], acc[1])); }
};

// Two rows at a time share the loads of the activations and give the memory system two streams.
template <class Row>
void rows(const LinearJob& job, int64_t begin, int64_t end) {
    const WeightView& w = job.out.w;
    using Block = typename Row::Format;
    (void)sizeof(Block);
    int64_t r = begin;
    for (; r + 2 <= end; r += 2) {
        for (int64_t i = 0; i < job.n; ++i) {
            Row first{reinterpret_cast<decltype(Row::w)>(row(w, r))};
            Row second{reinterpret_cast<decltype(Row::w)>(row(w, r + 1))};
            for (int64_t b = 0; b < w.n_in / Row::size; ++b) {
                const Activations a = from(job.a, i * w.n_in + b * Row::size);
                first.add(a, b);
                second.add(a, b);
            }
            put(job.out, r, i, first.result());
            put(job.out, r + 1, i, second.result());
        }
    }
    for (; r < end; ++r) {
        for (int64_t i = 0; i < job.n; ++i) {
            Row only{reinterpret_cast<decltype(Row::w)>(row(w, r))};
            for (int64_t b = 0; b < w.n_in / Row::size; ++b) only.add(from(job.a, i * w.n_in + b * Row::size), b);
            put(job.out, r, i, only.result());
        }
    }
}

}  // namespace

void vec_quantized(const LinearJob& job, int64_t begin, int64_t end) {
    switch (job.out.w.dtype) {
        case FASA_DTYPE_Q4_0:
            return rows<SimpleRow<BlockQ4_0>>(job, begin, end);
        case FASA_DTYPE_Q4_1:
            return rows<SimpleRow<BlockQ4_1>>(job, begin, end);
        case FASA_DTYPE_Q5_0:
            return rows<SimpleRow<BlockQ5_0>>(job, begin, end);
        case FASA_DTYPE_Q5_1:
            return rows<SimpleRow<BlockQ5_1>>(job, begin, end);
        case FASA_DTYPE_Q8_0:
            return rows<SimpleRow<BlockQ8_0>>(job, begin, end);
        case FASA_DTYPE_IQ4_NL:
            return rows<SimpleRow<BlockIQ4_NL>>(job, begin, end);
        case FASA_DTYPE_Q2_K:
            return rows<SuperRow<BlockQ2_K>>(job, begin, end);
        case FASA_DTYPE_Q3_K:
            return rows<SuperRow<BlockQ3_K>>(job, begin, end);
        case FASA_DTYPE_Q4_K:
            return rows<SuperRow<BlockQ4_K>>(job, begin, end);
        case FASA_DTYPE_Q5_K:
            return rows<SuperRow<BlockQ5_K>>(job, begin, end);
        case FASA_DTYPE_Q6_K:
            return rows<SuperRow<BlockQ6_K>>(job, begin, end);
        case FASA_DTYPE_IQ4_XS:
            return rows<SuperRow<BlockIQ4_XS>>(job, begin, end);
        default:
            return;
    }
}

}  // namespace fasa::cpu::FASA_ISA
