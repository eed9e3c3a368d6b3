// GGUF tensor types: block structs as they lie in the file, and their sizes. Source: the GGUF specification and
// gguf-py's constants.GGML_QUANT_SIZES.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fasa.h"

namespace fasa {

using DType = fasa_dtype;

inline constexpr int QK = 32;     // values in a block of the simple types
inline constexpr int QK_K = 256;  // values in a super-block of the K types

// Half-precision numbers are kept as their bits; base/half.h converts.
struct BlockQ4_0 {
    uint16_t d;
    uint8_t qs[QK / 2];
};
struct BlockQ4_1 {
    uint16_t d, m;
    uint8_t qs[QK / 2];
};
struct BlockQ5_0 {
    uint16_t d;
    uint8_t qh[4], qs[QK / 2];
};
struct BlockQ5_1 {
    uint16_t d, m;
    uint8_t qh[4], qs[QK / 2];
};
struct BlockQ8_0 {
    uint16_t d;
    int8_t qs[QK];
};
struct BlockQ2_K {
    uint8_t scales[QK_K / 16], qs[QK_K / 4];
    uint16_t d, dmin;
};
struct BlockQ3_K {
    uint8_t hmask[QK_K / 8], qs[QK_K / 4], scales[12];
    uint16_t d;
};
struct BlockQ4_K {
    uint16_t d, dmin;
    uint8_t scales[12], qs[QK_K / 2];
};
struct BlockQ5_K {
    uint16_t d, dmin;
    uint8_t scales[12], qh[QK_K / 8], qs[QK_K / 2];
};
struct BlockQ6_K {
    uint8_t ql[QK_K / 2], qh[QK_K / 4];
    int8_t scales[QK_K / 16];
    uint16_t d;
};
struct BlockIQ4_NL {
    uint16_t d;
    uint8_t qs[QK / 2];
};
struct BlockIQ4_XS {
    uint16_t d, scales_h;
    uint8_t scales_l[QK_K / 64], qs[QK_K / 2];
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 &&
              sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210 && sizeof(BlockIQ4_NL) == 18);
static_assert(sizeof(BlockIQ4_XS) == 136);

struct DTypeTraits {
    const char* name;    // "Q4_K"; nullptr: the number is not a supported type
    int block_values;    // values in a block
    size_t block_bytes;  // bytes of a block
};

// Traits of a GGUF type number; name is nullptr for one that is not supported.
DTypeTraits dtype_traits(uint32_t type);
// Name of any GGUF type number known to the format, supported or not; "type 99" style text is the caller's.
const char* dtype_known_name(uint32_t type);
// "F32, F16, BF16, ..." of all supported types.
const char* dtype_supported_names();

// Bytes of a row of n values; n must be a multiple of the block.
inline size_t dtype_row_bytes(DType type, int64_t n) {
    const DTypeTraits t = dtype_traits(type);
    return static_cast<size_t>(n / t.block_values) * t.block_bytes;
}

}  // namespace fasa
