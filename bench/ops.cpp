// Speed of the matrix products, per weight type: GB/s of weights for one token with cold weights, GMAC/s for many.
//
//     fasa_ops [--threads N] [--tokens N] [--shape N_IN N_OUT] [TYPE...]
//
// FASA_CPU=scalar|avx2|avx512 picks the instruction set. The best of several runs is printed; the first line is the
// bandwidth of plain reads, which the products of one token cannot exceed.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include "../tests/native/random_weights.h"
#include "backend/cpu/linear.h"
#include "base/buffer.h"
#include "base/cpu.h"
#include "base/team.h"

using namespace fasa;

namespace {

constexpr size_t COLD_BYTES = size_t{1} << 29;  // more than a cache keeps for us
constexpr double ROUND_S = 0.02;
constexpr int N_ROUNDS = 30;

// One thread is timed by its own processor time, which leaves out what other processes take; several by the wall clock.
double now_s(int n_threads) {
    timespec t;
    clock_gettime(n_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Calls per second of f, the best of several rounds.
template <class F>
double best_rate(int n_threads, F&& f) {
    double best = 0;
    for (int round = 0; round < N_ROUNDS; ++round) {
        const double begin = now_s(n_threads);
        int n = 0;
        do {
            f();
            ++n;
        } while (now_s(n_threads) < begin + ROUND_S);
        best = std::max(best, n / (now_s(n_threads) - begin));
    }
    return best;
}

double read_bandwidth(const Buffer& buffer, Team& team) {
    constexpr size_t part = size_t{1} << 20;  // bytes
    volatile uint64_t sink = 0;
    const double rate = best_rate(team.n_threads(), [&] {
        team.run(static_cast<int64_t>(buffer.n_bytes() / part), [&](int64_t i, int) {
            const auto* words = static_cast<const uint64_t*>(buffer.data()) + static_cast<size_t>(i) * (part / 8);
            uint64_t sum = 0;
            for (size_t k = 0; k < part / 8; ++k) sum += words[k];
            sink = sum;
        });
    });
    return rate * static_cast<double>(buffer.n_bytes());
}

struct Settings {
    int n_threads = 1, n_tokens = 512;
    int64_t n_in = 2048, n_out = 8192;
    std::vector<std::string> types;
};

void measure(DType type, const Settings& s, Team& team, const Buffer& cold) {
    const test::RandomWeights weights(type, s.n_out, s.n_in, 1);
    const WeightView w = weights.view();
    const std::vector<float> x = test::random_floats(s.n_tokens * s.n_in, 2);
    std::vector<float> y(static_cast<size_t>(s.n_tokens * s.n_out));
    cpu::Linear linear(team, s.n_tokens, s.n_in);

    const size_t n_copies = std::max<size_t>(1, cold.n_bytes() / w.n_bytes());
    for (size_t i = 0; i < n_copies; ++i) {
        std::memcpy(static_cast<uint8_t*>(cold.data()) + i * w.n_bytes(), w.data, w.n_bytes());
    }
    size_t next = 0;
    const double vec = best_rate(s.n_threads, [&] {
        WeightView copy = w;
        copy.data = static_cast<const uint8_t*>(cold.data()) + next++ % n_copies * w.n_bytes();
        const LinearOut out = {copy, nullptr, y.data(), false};
        linear.run(&out, 1, x.data(), 1);
    });
    const double mat = best_rate(s.n_threads, [&] {
        const LinearOut out = {w, nullptr, y.data(), false};
        linear.run(&out, 1, x.data(), s.n_tokens);
    });
    const double macs = static_cast<double>(s.n_in) * static_cast<double>(s.n_out) * s.n_tokens;
    std::printf("%-7s %8.2f %10.1f\n", dtype_traits(type).name, vec * static_cast<double>(w.n_bytes()) * 1e-9,
                mat * macs * 1e-9);
    std::fflush(stdout);
}

Settings parse(int argc, char** argv) {
    Settings s;
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        const auto number = [&] { return std::atoi(i + 1 < argc ? argv[++i] : "0"); };
        if (arg == "--threads") {
            s.n_threads = number();
        } else if (arg == "--tokens") {
            s.n_tokens = number();
        } else if (arg == "--shape") {
            s.n_in = number();
            s.n_out = number();
        } else {
            s.types.push_back(arg);
        }
    }
    return s;
}

}  // namespace

int main(int argc, char** argv) {
    const Settings s = parse(argc, argv);
    if (s.n_threads < 1 || s.n_tokens < 1 || s.n_in < 256 || s.n_in % 256 != 0 || s.n_out < 1) {
        std::fprintf(stderr,
                     "usage: fasa_ops [--threads N] [--tokens N] [--shape N_IN N_OUT] [TYPE...]; "
                     "N_IN is a multiple of 256\n");
        return 1;
    }
    Team team(s.n_threads);
    const Buffer cold(COLD_BYTES, "cold weights");
#ifdef MADV_NOHUGEPAGE
    madvise(cold.data(), COLD_BYTES, MADV_NOHUGEPAGE);  // small pages, as those of a mapped file
#endif
    std::memset(cold.data(), 1, COLD_BYTES);
    std::printf("%s, %d threads, %d x %d; plain read %.1f GB/s\n", cpu_info().name.c_str(), s.n_threads,
                static_cast<int>(s.n_in), static_cast<int>(s.n_out), read_bandwidth(cold, team) * 1e-9);
    std::printf("%-7s %8s %10s (%d tokens)\n", "type", "GB/s", "GMAC/s", s.n_tokens);
    for (const DType type : test::ALL_DTYPES) {
        bool wanted = s.types.empty();
        for (const std::string& name : s.types) wanted |= name == dtype_traits(type).name;
        if (wanted) measure(type, s, team, cold);
    }
}
