// Small row-wise ops of the CPU backend, per instruction set.
#pragma once

#include <cstdint>

#include "backend/views.h"
#include "base/cpu.h"

namespace fasa::cpu {

struct ElementwiseKernels {
    // y = x / rms(x) * weight, one row of n values. y may be x.
    void (*rms_norm)(float* y, const float* x, const float* weight, int n, float eps);
    // gate = silu(gate) * up
    void (*silu_mul)(float* gate, const float* up, int64_t n);
    void (*to_half)(uint16_t* y, const float* x, int64_t n);
    // The codes and the scale of one position, see KeyCodes; key [n], n even and at most max_head_dim.
    void (*encode)(uint8_t* code, uint16_t* scale, const uint16_t* key, DomType type, int n);
    // Rotates the first n_rot values of a head; cos, sin [n_rot / 2].
    void (*rotate)(float* head, RopeLayout layout, int n_rot, const float* cos, const float* sin);
};

const ElementwiseKernels& elementwise_kernels(Isa isa);

namespace scalar {
extern const ElementwiseKernels elementwise;
}
namespace avx2 {
extern const ElementwiseKernels elementwise;
}
namespace avx512 {
extern const ElementwiseKernels elementwise;
}

}  // namespace fasa::cpu
