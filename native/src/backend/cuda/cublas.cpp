#include "backend/cuda/cublas.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include "base/error.h"

#define TEXT_OF_VALUE(x) #x
#define TEXT(x) TEXT_OF_VALUE(x)

namespace fasa::cuda {

namespace {

#if CUBLAS_VER_MAJOR >= 13
constexpr const char* WHEEL = "nvidia-cublas";
#else
constexpr const char* WHEEL = "nvidia-cublas-cu" TEXT(CUBLAS_VER_MAJOR);
#endif

// Found in the directories that the build noted in this library (native/cmake/cuda.cmake) and in the system's. Never
// closed: other code of the process may have it in use.
void* load(const char* file) {
    void* library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fail(FASA_ERROR_UNSUPPORTED,
             "%s cannot be loaded (%s): install the CUDA toolkit " TEXT(CUBLAS_VER_MAJOR) " or `pip install %s`, or "
             "name its directory in LD_LIBRARY_PATH",
             file, dlerror(), WHEEL);
    }
    return library;
}

void* find(void* library, const char* name) {
    void* function = dlsym(library, name);
    if (!function) fail(FASA_ERROR_UNSUPPORTED, "cuBLAS has no function %s", name);
    return function;
}

}  // namespace

void* cublas_lt_function(const char* name) {
    static void* const library = load("libcublasLt.so." TEXT(CUBLAS_VER_MAJOR));
    return find(library, name);
}

void* cublas_function(const char* name) {
    cublas_lt_function("cublasLtCreate");  // cuBLAS needs cuBLASLt, and may not know where the wheel keeps it
    static void* const library = load("libcublas.so." TEXT(CUBLAS_VER_MAJOR));
    return find(library, name);
}

}  // namespace fasa::cuda
