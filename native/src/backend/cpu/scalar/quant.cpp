#include "backend/cpu/quant.h"

#include "backend/cpu/block_dispatch.h"
#include "backend/cpu/scalar/unpack.h"
#include "base/error.h"

namespace fasa::cpu {

namespace {

template <class Block>
void dequantize(const void* src, float* dst, int64_t n) {
    const auto* blocks = static_cast<const Block*>(src);
    constexpr int size = decltype(unpack(*blocks))::size, group = decltype(unpack(*blocks))::group;
    for (int64_t b = 0; b < n / size; ++b, dst += size) {
        const auto u = unpack(blocks[b]);
        for (int k = 0; k < size; ++k) dst[k] = u.scale[k / group] * static_cast<float>(u.q[k]) - u.min[k / group];
    }
}

}  // namespace

void dequantize_row(DType type, const void* src, float* dst, int64_t n) {
    const auto* bits = static_cast<const uint16_t*>(src);
    if (type == FASA_DTYPE_F32) {
        std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
    } else if (type == FASA_DTYPE_F16) {
        for (int64_t k = 0; k < n; ++k) dst[k] = half_to_float(bits[k]);
    } else if (type == FASA_DTYPE_BF16) {
        for (int64_t k = 0; k < n; ++k) dst[k] = bfloat_to_float(bits[k]);
    } else if (!with_block(type, [&]<class Block>() { dequantize<Block>(src, dst, n); })) {
        fail(FASA_ERROR_UNSUPPORTED, "cannot dequantise tensor type %d", static_cast<int>(type));
    }
}

}  // namespace fasa::cpu
