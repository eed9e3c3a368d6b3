// Read bandwidth of this machine: sums 1 GiB with the given number of threads, prints the best GB/s of ten passes.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

int main(int argc, char** argv) {
    omp_set_num_threads(argc > 1 ? std::atoi(argv[1]) : omp_get_num_procs());
    const int64_t n = int64_t{1} << 27;
    std::vector<uint64_t> data(static_cast<size_t>(n));
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) data[i] = static_cast<uint64_t>(i);

    double best = 0;
    uint64_t sum = 0;
    for (int pass = 0; pass < 10; ++pass) {
        const double start = omp_get_wtime();
#pragma omp parallel for simd schedule(static) reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) sum += data[i];
        best = std::max(best, 8e-9 * static_cast<double>(n) / (omp_get_wtime() - start));
    }
    std::printf("%.2f\n", best);
    return sum == 0;  // the sum must be used, or the loops vanish
}
