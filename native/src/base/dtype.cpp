#include "base/dtype.h"

namespace fasa {

DTypeTraits dtype_traits(uint32_t type) {
    switch (type) {
        case FASA_DTYPE_F32:
            return {"F32", 1, 4};
        case FASA_DTYPE_F16:
            return {"F16", 1, 2};
        case FASA_DTYPE_BF16:
            return {"BF16", 1, 2};
        case FASA_DTYPE_Q4_0:
            return {"Q4_0", QK, sizeof(BlockQ4_0)};
        case FASA_DTYPE_Q4_1:
            return {"Q4_1", QK, sizeof(BlockQ4_1)};
        case FASA_DTYPE_Q5_0:
            return {"Q5_0", QK, sizeof(BlockQ5_0)};
        case FASA_DTYPE_Q5_1:
            return {"Q5_1", QK, sizeof(BlockQ5_1)};
        case FASA_DTYPE_Q8_0:
            return {"Q8_0", QK, sizeof(BlockQ8_0)};
        case FASA_DTYPE_Q2_K:
            return {"Q2_K", QK_K, sizeof(BlockQ2_K)};
        case FASA_DTYPE_Q3_K:
            return {"Q3_K", QK_K, sizeof(BlockQ3_K)};
        case FASA_DTYPE_Q4_K:
            return {"Q4_K", QK_K, sizeof(BlockQ4_K)};
        case FASA_DTYPE_Q5_K:
            return {"Q5_K", QK_K, sizeof(BlockQ5_K)};
        case FASA_DTYPE_Q6_K:
            return {"Q6_K", QK_K, sizeof(BlockQ6_K)};
        case FASA_DTYPE_IQ4_NL:
            return {"IQ4_NL", QK, sizeof(BlockIQ4_NL)};
        case FASA_DTYPE_IQ4_XS:
            return {"IQ4_XS", QK_K, sizeof(BlockIQ4_XS)};
        default:
            return {nullptr, 0, 0};
    }
}

const char* dtype_known_name(uint32_t type) {
    if (const char* name = dtype_traits(type).name) return name;
    switch (type) {
        case 4:
            return "Q4_2";
        case 5:
            return "Q4_3";
        case 9:
            return "Q8_1";
        case 15:
            return "Q8_K";
        case 16:
            return "IQ2_XXS";
        case 17:
            return "IQ2_XS";
        case 18:
            return "IQ3_XXS";
        case 19:
            return "IQ1_S";
        case 21:
            return "IQ3_S";
        case 22:
            return "IQ2_S";
        case 24:
            return "I8";
        case 25:
            return "I16";
        case 26:
            return "I32";
        case 27:
            return "I64";
        case 28:
            return "F64";
        case 29:
            return "IQ1_M";
        case 34:
            return "TQ1_0";
        case 35:
            return "TQ2_0";
        case 39:
            return "MXFP4";
        case 40:
            return "NVFP4";
        case 41:
            return "Q1_0";
        default:
            return nullptr;
    }
}

const char* dtype_supported_names() {
    return "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS";
}

}  // namespace fasa
