// Row-wise ops with vectors.
#include "backend/cpu/elementwise_kernels.h"
#include "backend/cpu/isa/simd.h"

namespace fasa::cpu::FASA_ISA {
namespace {

void rms_norm(float* y, const float* x, const float* weight, int n, float eps) {
    const int tail = n % LANES, whole = n - tail;
    vf sums = zero();
    for (int i = 0; i < whole; i += LANES) sums = fma(load(x + i), load(x + i), sums);
    if (tail) {
        const vf v = load_first(x + whole, tail);
        sums = fma(v, v, sums);
    }
    const float scale = 1.0f / __builtin_sqrtf(reduce_add(sums) / static_cast<float>(n) + eps);
    const vf scales = set1(scale);
    for (int i = 0; i < whole; i += LANES) store(y + i, mul(mul(load(x + i), scales), load(weight + i)));
    if (tail) {
        const vf v = mul(mul(load_first(x + whole, tail), scales), load_first(weight + whole, tail));
        store_first(y + whole, v, tail);
    }
}

vf silu(vf x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }

void silu_mul(float* gate, const float* up, int64_t n) {
    const int tail = static_cast<int>(n % LANES);
    const int64_t whole = n - tail;
    for (int64_t i = 0; i < whole; i += LANES) store(gate + i, mul(silu(load(gate + i)), load(up + i)));
    if (tail) store_first(gate + whole, mul(silu(load_first(gate + whole, tail)), load_first(up + whole, tail)), tail);
}

void to_half(uint16_t* y, const float* x, int64_t n) {
    const int tail = static_cast<int>(n % LANES);
    const int64_t whole = n - tail;
    for (int64_t i = 0; i < whole; i += LANES) store_half(y + i, load(x + i));
    if (tail) store_half_first(y + whole, load_first(x + whole, tail), tail);
}

void encode(uint8_t* code, uint16_t* scale, const uint16_t* key, DomType type, int n) {
    float dims[max_head_dim + LANES];
    vf top = zero(), not_finite = zero();
    for (int d = 0; d < n; d += LANES) {
        const vf k = load_half_any(key + d, n - d);
        store(dims + d, k);
        top = max(top, max(k, sub(zero(), k)));
        not_finite = fma(k, zero(), not_finite);  // NaN from infinity and from NaN
    }
    const float largest = static_cast<float>(largest_code(type));
    const bool finite = reduce_add(not_finite) == 0;
    float unit = reduce_max(top) / largest;
    store_half_first(scale, set1(finite ? unit : __builtin_nanf("")), 1);
    unit = reduce_max(load_half_first(scale, 1));
    const vf inverse = set1(finite && unit > 0 ? 1.0f / unit : 0.0f);
    for (int d = 0; d < n; d += LANES) {
        const vf nearest = finite ? round(mul(load(dims + d), inverse)) : zero();
        store(dims + d, max(set1(-largest), min(set1(largest), nearest)));
    }
    if (type == DomType::q4) {
        for (int i = 0; i < n / 2; ++i) {
            code[i] = static_cast<uint8_t>((static_cast<int>(dims[2 * i]) + 8) | (static_cast<int>(dims[2 * i + 1]) + 8)
                                                                                     << 4);
        }
    } else {
        for (int d = 0; d < n; ++d) code[d] = static_cast<uint8_t>(static_cast<int>(dims[d]));
    }
}

// Plain loops: the compiler vectorises both with this file's instruction set.
void rotate(float* head, RopeLayout layout, int n_rot, const float* cos, const float* sin) {
    const int half = n_rot / 2;
    if (layout == RopeLayout::interleaved) {
        for (int i = 0; i < half; ++i) {
            const float x = head[2 * i], y = head[2 * i + 1];
            head[2 * i] = x * cos[i] - y * sin[i];
            head[2 * i + 1] = x * sin[i] + y * cos[i];
        }
    } else {
        for (int i = 0; i < half; ++i) {
            const float x = head[i], y = head[i + half];
            head[i] = x * cos[i] - y * sin[i];
            head[i + half] = x * sin[i] + y * cos[i];
        }
    }
}

}  // namespace

extern const ElementwiseKernels elementwise;
const ElementwiseKernels elementwise = {rms_norm, silu_mul, to_half, encode, rotate};

}  // namespace fasa::cpu::FASA_ISA
