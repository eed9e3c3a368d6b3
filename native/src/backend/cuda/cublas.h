// cuBLAS and cuBLASLt, loaded when first used: the library also works where neither is installed.
#pragma once

namespace fasa::cuda {

// The function of this name. Throws Error(UNSUPPORTED) that says how to install cuBLAS.
void* cublas_function(const char* name);
void* cublas_lt_function(const char* name);

}  // namespace fasa::cuda

// FASA_CUBLAS_LT(cublasLtCreate)(&handle): the call, with the type that <cublasLt.h> declares.
#define FASA_CUBLAS(name) reinterpret_cast<decltype(&name)>(::fasa::cuda::cublas_function(#name))
#define FASA_CUBLAS_LT(name) reinterpret_cast<decltype(&name)>(::fasa::cuda::cublas_lt_function(#name))
