// Quantised weights as numbers, and activations as int8.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace fasa::cpu {

// n values (a multiple of the block) of any supported type to float, as gguf-py's gguf.quants.dequantize gives them.
void dequantize_row(DType type, const void* src, float* dst, int64_t n);

// Activations of any number of rows, one after the other: x[k] is about d[k / 32] * q[k]. A block of 32 that holds NaN
// or an infinity has d = NaN, so the products that read it are NaN, as in float arithmetic.
struct Activations {
    int8_t* q;   // [n], -127..127
    float* d;    // [n / 32]
    float* s32;  // [n / 32]: d * sum of q over 32
    float* s16;  // [n / 16]: d * sum of q over 16
};

// From value k on, a multiple of 32. Static, as a shared copy might be one compiled for a wider instruction set.
static inline Activations from(const Activations& a, int64_t k) {
    return {a.q + k, a.d + k / 32, a.s32 + k / 32, a.s16 + k / 16};
}

// Below this a block counts as zero: 127 / max would not be a finite number.
inline constexpr float ACTIVATION_MIN = 0x1p-100f;

// The 16 values that IQ4_NL and IQ4_XS index.
inline constexpr int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

}  // namespace fasa::cpu
