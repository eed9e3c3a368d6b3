// The command line of run_tests.h. Without a GPU all tests are skipped.
#include <cuda_runtime.h>

#include "run_tests.h"

int main(int argc, char** argv) {
    int n_gpu = 0;
    const cudaError_t status = cudaGetDeviceCount(&n_gpu);
    const bool only_names = argc == 2 && std::strcmp(argv[1], "--list") == 0;
    if (!only_names && (status != cudaSuccess || n_gpu == 0)) {
        std::printf("skipped: no GPU is visible (%s)\n", cudaGetErrorString(status));
        return 77;  // SKIP_RETURN_CODE
    }
    return check::run_tests(argc, argv);
}
