// What an instruction set provides for Linear: one table of functions, all of which work on a range of rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/quant.h"
#include "backend/views.h"

namespace fasa::cpu {

// One product with its input in both forms: x for float weights, a for quantised ones.
struct LinearJob {
    LinearOut out;
    const float* x;  // [n][n_in]
    Activations a;   // [n][n_in]
    int n;
};

struct LinearKernels {
    const char* name;
    int tile;  // rows best worked on together; ranges given to `rows` start at a multiple of it
    // n values, a multiple of 32, to int8, as `rows` wants them for this many tokens. For one token every instruction
    // set gives the same bits.
    void (*quantize)(const float* x, int64_t n, int n_tokens, const Activations& a);
    // Rows begin..end of the product for all n tokens. scratch: scratch_bytes(), aligned to 64.
    void (*rows)(const LinearJob& job, int64_t begin, int64_t end, void* scratch);
    size_t (*scratch_bytes)();
};

namespace scalar {
const LinearKernels& linear_kernels();
}
#if FASA_X86
namespace avx2 {
const LinearKernels& linear_kernels();
}
namespace avx512 {
const LinearKernels& linear_kernels();
}
#endif

// The table of the instruction set that cpu_info() names.
const LinearKernels& linear_kernels();

static inline bool is_float(DType type) {
    return type == FASA_DTYPE_F32 || type == FASA_DTYPE_F16 || type == FASA_DTYPE_BF16;
}

}  // namespace fasa::cpu
