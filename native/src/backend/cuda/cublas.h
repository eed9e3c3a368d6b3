// cuBLASLt, loaded when first used: the library also works where it is not installed.
#pragma once

#include <cublasLt.h>

namespace fasa::cuda {

// The functions in use, under their own names.
#define FASA_CUBLAS_LT_FUNCTIONS(f)                                                                                  \
    f(cublasLtCreate) f(cublasLtDestroy) f(cublasLtMatmulDescCreate) f(cublasLtMatmulDescDestroy)                    \
        f(cublasLtMatmulDescSetAttribute) f(cublasLtMatrixLayoutCreate) f(cublasLtMatrixLayoutDestroy)               \
            f(cublasLtMatrixLayoutSetAttribute) f(cublasLtMatmulPreferenceCreate) f(cublasLtMatmulPreferenceDestroy) \
                f(cublasLtMatmulPreferenceSetAttribute) f(cublasLtMatmulAlgoGetHeuristic) f(cublasLtMatmulAlgoCheck) \
                    f(cublasLtMatmulAlgoConfigGetAttribute) f(cublasLtMatmul)

struct CublasLt {
#define FASA_MEMBER(name) decltype(&::name) name;
    FASA_CUBLAS_LT_FUNCTIONS(FASA_MEMBER)
#undef FASA_MEMBER
};

// Throws Error(UNSUPPORTED) that says how to install cuBLAS.
const CublasLt& cublas_lt();

}  // namespace fasa::cuda
