// Attention of the CPU backend: dense decode and the three parts of a sparse step over a split cache (ranking by the
// dominant dims, top-k, attention over what was chosen), in GB/s of the cache and in microseconds a layer; prefill in
// GFLOP/s.
//
//     fasa_attention [n_threads]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../tests/native/random_weights.h"
#include "backend/backend.h"
#include "base/cpu.h"
#include "base/half.h"

using namespace fasa;

namespace {

constexpr int n_layer = 8;  // so that the cache comes from memory and not from L2
constexpr int n_batch = 512, n_fac = 256, n_sink = 4, n_recent = 32;

// Of one layer, the best of several rounds over all of them.
template <class F>
double best_seconds(F&& f) {
    double best = 1e9;
    for (int round = 0; round < 7; ++round) {
        const auto start = std::chrono::steady_clock::now();
        for (int layer = 0; layer < n_layer; ++layer) f(layer);
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best / n_layer;
}

struct Shape {
    const char* name;
    int n_head, n_head_kv, head_dim;
};

void measure(const Shape& s, int n_ctx, int n_threads) {
    const auto device = make_cpu_device(n_threads);
    const auto ops = device->make_ops({n_batch, 64, s.n_head, s.n_head_kv, s.head_dim, n_ctx});
    const int n_dom = s.head_dim / 4;
    const size_t n_rows = size_t{1} * s.n_head_kv * n_ctx, n_rest = n_rows * (2 * s.head_dim - n_dom);
    const std::vector<float> noise = test::random_floats(1 << 16, 1);
    std::vector<uint16_t> dom(n_layer * n_rows * n_dom), rest(n_layer * n_rest);
    for (size_t i = 0; i < dom.size(); ++i) dom[i] = float_to_half(noise[i * 7 % noise.size()]);
    for (size_t i = 0; i < rest.size(); ++i) rest[i] = float_to_half(noise[i * 5 % noise.size()]);
    const std::vector<float> q = test::random_floats(int64_t{n_batch} * s.n_head * s.head_dim, 2);
    std::vector<float> y(q.size()), scores(size_t{n_layer} * s.n_head_kv * n_ctx);
    std::vector<int32_t> positions(n_rows), count(static_cast<size_t>(s.n_head_kv));
    Selection selection{positions.data(), count.data(), s.n_head_kv, n_ctx};
    const auto cache = [&](int layer) {
        KvView kv;
        kv.dom = dom.data() + layer * n_rows * n_dom;
        kv.rest = rest.data() + layer * n_rest;
        kv.n_ctx = n_ctx;
        kv.n_head_kv = s.n_head_kv;
        kv.head_dim = s.head_dim;
        kv.n_dom = n_dom;
        return kv;
    };
    const auto scores_of = [&](int layer) { return scores.data() + size_t{1} * layer * s.n_head_kv * n_ctx; };

    const double dense = best_seconds([&](int i) {
        ops->attend_dense(y.data(), q.data(), s.n_head, 0.1f, cache(i), {0, n_ctx - 1, 1});
    });
    const double ranking = best_seconds([&](int i) {
        ops->token_scores(scores_of(i), {q.data(), nullptr, s.n_head_kv, s.n_head_kv}, cache(i), 0, n_ctx, false,
                          nullptr);
    });
    const double choice = best_seconds([&](int i) {
        ops->topk(scores_of(i), n_ctx, {n_fac, n_sink, n_recent}, selection);
    });
    const double chosen =
        best_seconds([&](int i) { ops->attend_selected(y.data(), q.data(), s.n_head, 0.1f, cache(i), 0, selection); });
    const double prefill = best_seconds([&](int i) {
        ops->attend_dense(y.data(), q.data(), s.n_head, 0.1f, cache(i), {0, n_ctx - n_batch, n_batch});
    });

    const double row = 2e-9 * static_cast<double>(n_rows);  // GB for one dim of all keys
    const double flop = 4.0 * s.n_head * s.head_dim * n_batch * (n_ctx - n_batch / 2);
    std::printf("%-20s %7d | %7.0f %5.1f | %7.0f %5.1f | %7.0f | %7.0f | %8.1f\n", s.name, n_ctx, 1e6 * dense,
                2 * s.head_dim * row / dense, 1e6 * ranking, n_dom * row / ranking, 1e6 * choice, 1e6 * chosen,
                flop / prefill / 1e9);
}

}  // namespace

int main(int argc, char** argv) {
    const int n_threads = argc > 1 ? std::atoi(argv[1]) : processor().n_cores;
    std::printf("%s, %d threads; a layer\n%-20s %7s | %13s | %13s | %7s | %7s | %8s\n", cpu_info().name.c_str(),
                n_threads, "shape", "context", "dense us GB/s", "rank us  GB/s", "topk us", "256 us", "prefill");
    for (const int n_ctx : {1024, 8192, 16384}) {
        measure({"32 heads/8 kv x 64", 32, 8, 64}, n_ctx, n_threads);
        measure({"32 heads/8 kv x 128", 32, 8, 128}, n_ctx, n_threads);
        measure({"4 heads/2 kv x 128", 4, 2, 128}, n_ctx, n_threads);
    }
}
