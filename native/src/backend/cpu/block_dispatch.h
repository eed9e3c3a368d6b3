// From a tensor type to the block struct that it is made of.
#pragma once

#include "base/dtype.h"

namespace fasa::cpu {

// f.template operator()<Block>() for the quantised type's Block; false for any other type. Static, as a shared copy
// might be one compiled for a wider instruction set.
template <class F>
static inline bool with_block(DType type, F&& f) {
    switch (type) {
        case FASA_DTYPE_Q4_0:
            return f.template operator()<BlockQ4_0>(), true;
        case FASA_DTYPE_Q4_1:
            return f.template operator()<BlockQ4_1>(), true;
        case FASA_DTYPE_Q5_0:
            return f.template operator()<BlockQ5_0>(), true;
        case FASA_DTYPE_Q5_1:
            return f.template operator()<BlockQ5_1>(), true;
        case FASA_DTYPE_Q8_0:
            return f.template operator()<BlockQ8_0>(), true;
        case FASA_DTYPE_Q2_K:
            return f.template operator()<BlockQ2_K>(), true;
        case FASA_DTYPE_Q3_K:
            return f.template operator()<BlockQ3_K>(), true;
        case FASA_DTYPE_Q4_K:
            return f.template operator()<BlockQ4_K>(), true;
        case FASA_DTYPE_Q5_K:
            return f.template operator()<BlockQ5_K>(), true;
        case FASA_DTYPE_Q6_K:
            return f.template operator()<BlockQ6_K>(), true;
        case FASA_DTYPE_IQ4_NL:
            return f.template operator()<BlockIQ4_NL>(), true;
        case FASA_DTYPE_IQ4_XS:
            return f.template operator()<BlockIQ4_XS>(), true;
        default:
            return false;
    }
}

}  // namespace fasa::cpu
