// The reference that the SIMD kernels are tested against, and what runs where none of them can.
#include <algorithm>
#include <bit>
#include <limits>

#include "backend/cpu/block_dispatch.h"
#include "backend/cpu/linear_kernels.h"
#include "backend/cpu/scalar/unpack.h"

namespace fasa::cpu::scalar {

namespace {

// Nearest whole number, ties to even, for |x| < 2^22.
int32_t round_to_int(float x) { return std::bit_cast<int32_t>(x + 0x1.8p23f) - 0x4b400000; }

void quantize_block(const float* x, const Activations& a) {
    uint32_t max_bits = 0;  // of |x|: as bits, NaN is above infinity and both are above any number
    for (int i = 0; i < 32; ++i) max_bits = std::max(max_bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
    const float max = std::bit_cast<float>(max_bits);
    const bool finite = max_bits < 0x7f800000u, zero = max_bits < std::bit_cast<uint32_t>(ACTIVATION_MIN);

    const float inverse = 127.0f / max;
    for (int i = 0; i < 32; ++i) a.q[i] = zero || !finite ? 0 : static_cast<int8_t>(round_to_int(x[i] * inverse));
    a.d[0] = zero ? 0.0f : finite ? max / 127.0f : std::numeric_limits<float>::quiet_NaN();

    int sum[2] = {0, 0};
    for (int i = 0; i < 32; ++i) sum[i / 16] += a.q[i];
    a.s16[0] = a.d[0] * static_cast<float>(sum[0]);
    a.s16[1] = a.d[0] * static_cast<float>(sum[1]);
    a.s32[0] = a.d[0] * static_cast<float>(sum[0] + sum[1]);
}

void quantize(const float* x, int64_t n, int, const Activations& a) {
    for (int64_t k = 0; k < n; k += 32) quantize_block(x + k, from(a, k));
}

// sum over k of w[k] * x[k], both as integers within a group, in float across groups.
template <class U>
float dot_block(const U& w, const Activations& a) {
    float result = 0;
    for (int g = 0; g < U::size / U::group; ++g) {
        int32_t sum = 0;
        for (int k = g * U::group; k < (g + 1) * U::group; ++k) sum += w.q[k] * a.q[k];
        const float x_sum = U::group == 32 ? a.s32[g] : a.s16[g];
        result += w.scale[g] * a.d[g * U::group / 32] * static_cast<float>(sum) - w.min[g] * x_sum;
    }
    return result;
}

constexpr int N_AT_ONCE = 8;  // tokens that share the unpacking of a block

template <class Block>
void dot(const void* w, const Activations& a, int64_t n_in, int n, float* y) {
    const auto* blocks = static_cast<const Block*>(w);
    constexpr int size = decltype(unpack(*blocks))::size;
    for (int i = 0; i < n; ++i) y[i] = 0;
    for (int64_t k = 0; k < n_in; k += size) {
        const auto u = unpack(blocks[k / size]);
        for (int i = 0; i < n; ++i) y[i] += dot_block(u, from(a, i * n_in + k));
    }
}

float to_float(float w) { return w; }
struct Half {
    uint16_t bits;
};
struct Bfloat {
    uint16_t bits;
};
float to_float(Half w) { return half_to_float(w.bits); }
float to_float(Bfloat w) { return bfloat_to_float(w.bits); }

template <class Value>
void dot_float(const void* w, const float* x, int64_t n_in, int n, float* y) {
    const auto* values = static_cast<const Value*>(w);
    for (int i = 0; i < n; ++i) {
        y[i] = 0;
        for (int64_t k = 0; k < n_in; ++k) y[i] += to_float(values[k]) * x[i * n_in + k];
    }
}

// y[i] = w . x[i] for n <= N_AT_ONCE tokens.
void dot_row(DType type, const void* w, const float* x, const Activations& a, int64_t n_in, int n, float* y) {
    if (type == FASA_DTYPE_F32) return dot_float<float>(w, x, n_in, n, y);
    if (type == FASA_DTYPE_F16) return dot_float<Half>(w, x, n_in, n, y);
    if (type == FASA_DTYPE_BF16) return dot_float<Bfloat>(w, x, n_in, n, y);
    with_block(type, [&]<class Block>() { dot<Block>(w, a, n_in, n, y); });
}

void rows(const LinearJob& job, int64_t begin, int64_t end, void*) {
    const LinearOut& out = job.out;
    for (int64_t r = begin; r < end; ++r) {
        const auto* w = static_cast<const uint8_t*>(out.w.data) + static_cast<size_t>(r) * out.w.row_bytes;
        for (int i = 0; i < job.n; i += N_AT_ONCE) {
            const int n = std::min(N_AT_ONCE, job.n - i);
            const int64_t first = i * out.w.n_in;
            float y[N_AT_ONCE];
            dot_row(out.w.dtype, w, job.x + first, from(job.a, first), out.w.n_in, n, y);
            for (int j = 0; j < n; ++j) {
                float& result = out.y[(i + j) * out.w.n_out + r];
                result = y[j] + (out.bias ? out.bias[r] : 0.0f) + (out.add ? result : 0.0f);
            }
        }
    }
}

size_t scratch_bytes() { return 0; }

}  // namespace

const LinearKernels& linear_kernels() {
    static const LinearKernels table = {"scalar", 8, quantize, rows, scratch_bytes};
    return table;
}

}  // namespace fasa::cpu::scalar
