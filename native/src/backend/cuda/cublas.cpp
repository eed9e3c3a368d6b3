#include "backend/cuda/cublas.h"

#include <cublas_api.h>
#include <dlfcn.h>

#include "base/error.h"

#define TEXT_OF_VALUE(x) #x
#define TEXT(x) TEXT_OF_VALUE(x)

namespace fasa::cuda {

namespace {

constexpr const char* FILE_NAME = "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR);
#if CUBLAS_VER_MAJOR >= 13
constexpr const char* WHEEL = "nvidia-cublas";
#else
constexpr const char* WHEEL = "nvidia-cublas-cu" TEXT(CUBLAS_VER_MAJOR);
#endif

template <class Function>
void find(Function*& function, void* library, const char* name) {
    function = reinterpret_cast<Function*>(dlsym(library, name));
    if (!function) fail(FASA_ERROR_UNSUPPORTED, "%s has no function %s", FILE_NAME, name);
}

// Found in the directories that the build noted in this library (native/cmake/cuda.cmake) and in the system's. Never
// closed: other code of the process may have it in use.
CublasLt load() {
    void* library = dlopen(FILE_NAME, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fail(FASA_ERROR_UNSUPPORTED,
             "%s cannot be loaded (%s): install the CUDA toolkit " TEXT(CUBLAS_VER_MAJOR) " or `pip install %s`, or "
             "name its directory in LD_LIBRARY_PATH",
             FILE_NAME, dlerror(), WHEEL);
    }
    CublasLt lt = {};
#define FASA_FIND(name) find(lt.name, library, #name);
    FASA_CUBLAS_LT_FUNCTIONS(FASA_FIND)
#undef FASA_FIND
    return lt;
}

}  // namespace

const CublasLt& cublas_lt() {
    static const CublasLt lt = load();
    return lt;
}

}  // namespace fasa::cuda
