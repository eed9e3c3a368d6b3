// Dense attention of the CPU backend: decode in GB/s of KV cache read, prefill in GFLOP/s.
//
//     bench/attention [n_threads]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "backend/cpu/attention.h"

using namespace fasa;

namespace {

template <class F>
double best_seconds(F&& f) {
    double best = 1e9;
    for (int i = 0; i < 7; ++i) {
        const auto start = std::chrono::steady_clock::now();
        f();
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best;
}

void measure(const char* shape, int n_head, int n_head_kv, int head_dim, int n_ctx, int n_threads) {
    constexpr int n_batch = 512, n_layer = 8;  // several layers, so that the cache comes from memory and not from L2
    Team team(n_threads);
    cpu::Attention attention(team, {n_batch, 64, n_head, n_head_kv, head_dim, n_ctx});
    const size_t layer_values = size_t{2} * n_head_kv * n_ctx * head_dim;
    std::vector<uint16_t> cache(n_layer * layer_values, 0x2e66);  // 0.1
    std::vector<float> q(size_t{n_batch} * n_head * head_dim, 0.1f), y(q.size());
    const auto layer = [&](int i) {
        KvView view;
        view.rest = cache.data() + i * layer_values;
        view.n_ctx = n_ctx;
        view.n_head_kv = n_head_kv;
        view.head_dim = head_dim;
        return view;
    };

    const double decode = best_seconds([&] {
        for (int i = 0; i < n_layer; ++i)
            attention.dense(y.data(), q.data(), n_head, 0.1f, layer(i), {0, n_ctx - 1, 1});
    });
    const double prefill = best_seconds([&] {
        attention.dense(y.data(), q.data(), n_head, 0.1f, layer(0), {0, n_ctx - n_batch, n_batch});
    });
    const double bytes = static_cast<double>(n_layer * layer_values * sizeof(uint16_t));
    const double flop = 4.0 * n_head * head_dim * n_batch * (n_ctx - n_batch / 2);
    std::printf("%-22s %7d %8d %12.1f %14.1f\n", shape, n_ctx, n_threads, bytes / decode / 1e9, flop / prefill / 1e9);
}

}  // namespace

int main(int argc, char** argv) {
    const int n_threads = argc > 1 ? std::atoi(argv[1]) : processor().n_cores;
    std::printf("%-22s %7s %8s %12s %14s   (%s)\n", "shape", "context", "threads", "decode GB/s", "prefill GFLOP/s",
                cpu_info().name.c_str());
    for (const int n_ctx : {1024, 8192, 32768}) {
        measure("32 heads/8 kv x 64", 32, 8, 64, n_ctx, n_threads);
        measure("32 heads/8 kv x 128", 32, 8, 128, n_ctx / 2, n_threads);
        measure("4 heads/2 kv x 128", 4, 2, 128, n_ctx, n_threads);
    }
}
