// Products with weights in F32, F16 and BF16, in float.
#include "backend/cpu/isa/linear.h"

namespace fasa::cpu::FASA_ISA {

namespace {

struct F32 {
    using Value = float;
    static vf get(const float* p) { return load(p); }
    static vf get_first(const float* p, int n) { return load_first(p, n); }
};
struct F16 {
    using Value = uint16_t;
    static vf get(const uint16_t* p) { return load_half(p); }
    static vf get_first(const uint16_t* p, int n) { return load_half_first(p, n); }
};
struct Bf16 {
    using Value = uint16_t;
    static vf get(const uint16_t* p) { return load_bfloat(p); }
    static vf get_first(const uint16_t* p, int n) { return load_bfloat_first(p, n); }
};

template <class Format>
float dot(const typename Format::Value* w, const float* x, int64_t n) {
    vf acc[4] = {zero(), zero(), zero(), zero()};
    int64_t k = 0;
    for (; k + 4 * LANES <= n; k += 4 * LANES) {
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

}  // namespace

void vec_float(const LinearJob& job, int64_t begin, int64_t end) {
    switch (job.out.w.dtype) {
        case FASA_DTYPE_F32:
            return rows<F32>(job, begin, end);
        case FASA_DTYPE_F16:
            return rows<F16>(job, begin, end);
        case FASA_DTYPE_BF16:
            return rows<Bf16>(job, begin, end);
        default:
            return;
    }
}

}  // namespace fasa::cpu::FASA_ISA
