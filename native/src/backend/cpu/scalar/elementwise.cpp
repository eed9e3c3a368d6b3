// The reference of the row-wise ops.
#include "backend/cpu/elementwise_kernels.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/half.h"

namespace fasa::cpu::scalar {
namespace {

void rms_norm(float* y, const float* x, const float* weight, int n, float eps) {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += double{x[i]} * x[i];
    const float scale = static_cast<float>(1.0 / std::sqrt(sum / n + eps));
    for (int i = 0; i < n; ++i) y[i] = x[i] * scale * weight[i];
}

void silu_mul(float* gate, const float* up, int64_t n) {
    for (int64_t i = 0; i < n; ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void to_half(uint16_t* y, const float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] = float_to_half(x[i]);
}

void encode(uint8_t* code, uint16_t* scale, const uint16_t* key, DomType type, int n) {
    constexpr uint16_t magnitude = 0x7fff, infinity = 0x7c00, nan = 0x7e00;
    const int largest = largest_code(type);
    uint16_t top = 0;
    for (int d = 0; d < n; ++d) top = std::max<uint16_t>(top, key[d] & magnitude);
    const bool finite = top < infinity;
    *scale = finite ? float_to_half(half_to_float(top) / static_cast<float>(largest)) : nan;
    const float unit = half_to_float(*scale), inverse = finite && unit > 0 ? 1.0f / unit : 0.0f;
    const auto code_of = [&](int d) {
        if (!finite) return 0;
        const int nearest = static_cast<int>(std::nearbyint(half_to_float(key[d]) * inverse));
        return std::clamp(nearest, -largest, largest);
    };
    for (int d = 0; d < n; d += 2) {
        const int a = code_of(d), b = code_of(d + 1);
        if (type == DomType::q4) {
            code[d / 2] = static_cast<uint8_t>((a + 8) | (b + 8) << 4);
        } else {
            code[d] = static_cast<uint8_t>(a);
            code[d + 1] = static_cast<uint8_t>(b);
        }
    }
}

void rotate(float* head, RopeLayout layout, int n_rot, const float* cos, const float* sin) {
    for (int i = 0; i < n_rot / 2; ++i) {
        const auto [a, b] =
            layout == RopeLayout::interleaved ? std::pair{2 * i, 2 * i + 1} : std::pair{i, i + n_rot / 2};
        const float x = head[a], y = head[b];
        head[a] = x * cos[i] - y * sin[i];
        head[b] = x * sin[i] + y * cos[i];
    }
}

}  // namespace

const ElementwiseKernels elementwise = {rms_norm, silu_mul, to_half, encode, rotate};

}  // namespace fasa::cpu::scalar
