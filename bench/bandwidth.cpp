// Read bandwidth of this machine: sums 2 GiB with the given number of threads, prints the best GB/s of ten passes.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

typedef uint64_t Vector __attribute__((vector_size(64)));

// Four sums, so that adding never waits for the sum before.
uint64_t sum(const Vector* data, size_t n) {
    Vector sums[4] = {};
    for (size_t i = 0; i + 4 <= n; i += 4) {
        for (size_t j = 0; j < 4; ++j) sums[j] += data[i + j];
    }
    return (sums[0] + sums[1] + sums[2] + sums[3])[0];
}

}  // namespace

int main(int argc, char** argv) {
    const size_t n_threads = argc > 1 ? static_cast<size_t>(std::atoi(argv[1])) : std::thread::hardware_concurrency();
    const size_t part = (size_t{2} << 30) / sizeof(Vector) / n_threads;
    std::vector<uint64_t> memory((part * n_threads + 1) * 8, 1);
    const auto* data = reinterpret_cast<const Vector*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);

    double best = 0;
    std::vector<uint64_t> sums(n_threads);
    for (int pass = 0; pass < 10; ++pass) {
        const auto start = std::chrono::steady_clock::now();
        std::vector<std::thread> threads;
        for (size_t t = 0; t < n_threads; ++t) threads.emplace_back([&, t] { sums[t] = sum(data + t * part, part); });
        for (std::thread& thread : threads) thread.join();
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = std::max(best, static_cast<double>(part * n_threads * sizeof(Vector)) / seconds / 1e9);
    }
    std::printf("%.2f\n", best);
    return sums[0] == 0;  // the sums must be used, or the loops vanish
}
