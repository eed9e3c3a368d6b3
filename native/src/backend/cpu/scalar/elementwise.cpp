// The reference of the row-wise ops.
#include "backend/cpu/elementwise_kernels.h"

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

const ElementwiseKernels elementwise = {rms_norm, silu_mul, to_half, rotate};

}  // namespace fasa::cpu::scalar
