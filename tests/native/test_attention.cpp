// Dense attention and the row-wise ops: every instruction set against the scalar reference, the reference against
// double precision, over odd shapes.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include "backend/cpu/attention.h"
#include "backend/cpu/elementwise_kernels.h"
#include "base/half.h"
#include "check.h"

using namespace fasa;
using namespace fasa::cpu;

namespace {

// Scores reach about 15, whose rounding in single precision shifts weights by 1e-6, and values reach 4.
constexpr double tolerance = 1e-5;

// head_dim and dominant dims
constexpr std::pair<int, int> shapes[] = {{64, 0}, {64, 16}, {128, 32}, {80, 0}, {80, 10}, {20, 6}, {2, 2}, {96, 96}};

std::vector<Isa> runnable() {
    std::vector<Isa> sets = {Isa::scalar};
#if FASA_X86
    if (cpu_info().isa != Isa::scalar) sets.push_back(Isa::avx2);
    if (cpu_info().isa == Isa::avx512) sets.push_back(Isa::avx512);
#endif
    return sets;
}

std::vector<float> random_floats(int64_t n, unsigned seed, float spread = 1.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = normal(random);
    return values;
}

std::vector<uint16_t> random_halves(int64_t n, unsigned seed) {
    std::vector<uint16_t> halves;
    for (const float v : random_floats(n, seed)) halves.push_back(float_to_half(v));
    return halves;
}

// One KV head's cache of random numbers, split after n_dom dims.
struct Cache {
    std::vector<uint16_t> dom, rest;
    KvHead view;

    Cache(int head_dim, int n_dom, int n_pos, unsigned seed)
        : dom(random_halves(int64_t{n_pos} * n_dom, seed)),
          rest(random_halves(int64_t{n_pos} * (2 * head_dim - n_dom), seed + 1)),
          view{dom.data(), rest.data(), n_dom, head_dim} {}

    double key(int pos, int d) const {
        const int n_dom = view.n_dom;
        return half_to_float(d < n_dom ? dom[pos * n_dom + d] : rest[pos * view.row_values() + d - n_dom]);
    }
    double value(int pos, int d) const { return half_to_float(rest[pos * view.row_values() + view.n_rest() + d]); }
};

// Attention of one query over listed rows, in double precision.
std::vector<double> exact(const float* q, int64_t stride, const Cache& cache, const std::vector<int32_t>& positions) {
    const int head_dim = cache.view.head_dim;
    std::vector<double> score, y(static_cast<size_t>(head_dim));
    for (const int32_t pos : positions) {
        double dot = 0;
        for (int d = 0; d < head_dim; ++d) dot += double{q[d * stride]} * cache.key(pos, d);
        score.push_back(dot);
    }
    const double top = *std::max_element(score.begin(), score.end());
    double sum = 0;
    for (double& s : score) sum += s = std::exp(s - top);
    for (size_t j = 0; j < positions.size(); ++j) {
        for (int d = 0; d < head_dim; ++d) y[d] += score[j] / sum * cache.value(positions[j], d);
    }
    return y;
}

std::vector<int32_t> first_positions(int n) {
    std::vector<int32_t> all(static_cast<size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    return all;
}

// Queries as the decode kernels want them: dominant dims and others, each padded.
std::vector<float> laid_out(const std::vector<float>& dense, int n_q, int n_dom, int head_dim) {
    const int stride = query_stride(n_dom, head_dim);
    std::vector<float> q(static_cast<size_t>(n_q * stride));
    for (int i = 0; i < n_q; ++i) {
        std::copy_n(&dense[i * head_dim], n_dom, &q[i * stride]);
        std::copy_n(&dense[i * head_dim + n_dom], head_dim - n_dom, &q[i * stride + padded(n_dom)]);
    }
    return q;
}

void check_chunk(const AttentionKernels& kernels, int n_q, int head_dim, int n_dom, int n_pos, bool listed) {
    const int stride = padded(head_dim);
    const auto dense = random_floats(int64_t{n_q} * head_dim, 1, 0.3f);
    const auto q = laid_out(dense, n_q, n_dom, head_dim);
    std::vector<float> values(static_cast<size_t>(n_q * stride), NAN);
    const Cache cache(head_dim, n_dom, listed ? 3 * n_pos : n_pos, 2);
    auto positions = first_positions(n_pos);
    for (int j = 0; listed && j < n_pos; ++j) positions[j] = 3 * j + j % 2;
    std::vector<SoftmaxState> state(static_cast<size_t>(n_q));
    for (int i = 0; i < n_q; ++i) state[i].values = &values[i * stride];
    kernels.chunk(q.data(), n_q, cache.view, listed ? positions.data() : nullptr, n_pos, state.data());
    double worst = 0;
    for (int i = 0; i < n_q; ++i) {
        const auto y = exact(&dense[i * head_dim], 1, cache, positions);
        for (int d = 0; d < head_dim; ++d) worst = std::max(worst, std::fabs(state[i].values[d] / state[i].sum - y[d]));
    }
    CHECK_NEAR(worst, 0.0, tolerance);
}

void check_tile(const AttentionKernels& kernels, int n_q, int head_dim, int n_dom, int n_first) {
    const int n = padded(n_q), n_pos = n_first + n_q - 1;
    std::vector<float> qt(static_cast<size_t>(head_dim * n)), out(qt.size(), NAN);
    std::vector<float> scratch(static_cast<size_t>(tile_scratch(head_dim)), NAN);
    const auto dense = random_floats(int64_t{n_q} * head_dim, 3, 0.3f);
    std::vector<int32_t> n_visible;
    for (int i = 0; i < n; ++i) n_visible.push_back(n_first + std::min(i, n_q - 1));
    for (int i = 0; i < n_q; ++i) {
        for (int d = 0; d < head_dim; ++d) qt[d * n + i] = dense[i * head_dim + d];
    }
    const Cache cache(head_dim, n_dom, n_pos, 4);
    kernels.tile(qt.data(), n_q, cache.view, n_visible.data(), out.data(), scratch.data());
    double worst = 0;
    for (int i = 0; i < n_q; ++i) {
        const auto y = exact(&qt[i], n, cache, first_positions(n_visible[i]));
        for (int d = 0; d < head_dim; ++d) worst = std::max(worst, std::fabs(out[d * n + i] - y[d]));
    }
    CHECK_NEAR(worst, 0.0, tolerance);
}

void check_scores(const AttentionKernels& kernels, int head_dim, int n_dom, int first, int n_pos, bool whole_key) {
    const auto dense = random_floats(head_dim, 5, 0.3f);
    const auto q = laid_out(dense, 1, n_dom, head_dim);
    const Cache cache(head_dim, n_dom, first + n_pos, 6);
    std::vector<float> scores(static_cast<size_t>(n_pos), NAN);
    kernels.scores(q.data(), cache.view, first, n_pos, whole_key, scores.data());
    double worst = 0;
    for (int j = 0; j < n_pos; ++j) {
        double dot = 0;
        for (int d = 0; d < (whole_key ? head_dim : n_dom); ++d) dot += double{dense[d]} * cache.key(first + j, d);
        worst = std::max(worst, std::fabs(scores[j] - dot));
    }
    CHECK_NEAR(worst, 0.0, tolerance);
}

}  // namespace

TEST(attention_decode_chunks) {
    for (const Isa isa : runnable()) {
        for (const auto& [head_dim, n_dom] : shapes) {
            for (const int n_q : {1, 2, 3, 4, 5, 7}) {
                for (const int n_pos : {1, 31, 32, 33, 200, kv_chunk}) {
                    for (const bool listed : {false, true}) {
                        check_chunk(attention_kernels(isa), n_q, head_dim, n_dom, n_pos, listed);
                    }
                }
            }
        }
    }
}

TEST(attention_prefill_tiles) {
    for (const Isa isa : runnable()) {
        for (const auto& [head_dim, n_dom] : shapes) {
            for (const int n_q : {1, 5, 16, 17, 33, max_queries}) {
                for (const int n_first : {1, 2, 64, 100}) {
                    check_tile(attention_kernels(isa), n_q, head_dim, n_dom, n_first);
                }
            }
        }
    }
}

TEST(attention_scores) {
    for (const Isa isa : runnable()) {
        for (const auto& [head_dim, n_dom] : shapes) {
            for (const int n_pos : {1, 3, 4, 5, 77}) {
                check_scores(attention_kernels(isa), head_dim, n_dom, 0, n_pos, false);
                check_scores(attention_kernels(isa), head_dim, n_dom, 9, n_pos, true);
            }
        }
    }
}

// A score far above all others, and one far below, must neither overflow nor vanish.
TEST(attention_extreme_scores) {
    const int head_dim = 16, n_pos = 70;
    std::vector<float> q(static_cast<size_t>(padded(head_dim)), 100.0f), values(q.size());
    Cache cache(head_dim, 0, n_pos, 5);
    for (int d = 0; d < head_dim; ++d) {
        cache.rest[50 * 2 * head_dim + d] = float_to_half(1000.0f);
        cache.rest[3 * 2 * head_dim + d] = float_to_half(-1000.0f);
    }
    for (const Isa isa : runnable()) {
        SoftmaxState state{0, 0, values.data()};
        attention_kernels(isa).chunk(q.data(), 1, cache.view, nullptr, n_pos, &state);
        for (int d = 0; d < head_dim; ++d) CHECK_NEAR(state.values[d] / state.sum, cache.value(50, d), 1e-6);
    }
}

namespace {

// A layer's cache of random numbers for several KV heads.
struct LayerCache {
    std::vector<uint16_t> dom, rest;
    KvView view;

    LayerCache(int n_head_kv, int n_ctx, int head_dim, int n_dom, unsigned seed)
        : dom(random_halves(int64_t{n_head_kv} * n_ctx * n_dom, seed)),
          rest(random_halves(int64_t{n_head_kv} * n_ctx * (2 * head_dim - n_dom), seed + 1)) {
        view.dom = dom.data();
        view.rest = rest.data();
        view.n_ctx = n_ctx;
        view.n_head_kv = n_head_kv;
        view.head_dim = head_dim;
        view.n_dom = n_dom;
    }
};

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
    double worst = 0;
    for (size_t i = 0; i < a.size(); ++i) worst = std::max<double>(worst, std::fabs(a[i] - b[i]));
    return worst;
}

}  // namespace

TEST(attention_whole_op_equals_rows_one_by_one) {
    const int n_head = 6, n_head_kv = 2, head_dim = 24, n_ctx = 1100, n = 37, pos0 = 1030;
    for (const int n_threads : {1, 3}) {
        for (const int n_dom : {0, 8}) {
            Team team(n_threads);
            Attention attention(team, {64, 64, n_head, n_head_kv, head_dim, n_ctx});
            const LayerCache cache(n_head_kv, n_ctx, head_dim, n_dom, 6);
            const auto q = random_floats(int64_t{n} * n_head * head_dim, 7);
            std::vector<float> together(q.size()), alone(q.size());
            attention.dense(together.data(), q.data(), n_head, 0.2f, cache.view, {0, pos0, n});
            for (int i = 0; i < n; ++i) {
                const int64_t at = int64_t{i} * n_head * head_dim;
                attention.dense(&alone[at], &q[at], n_head, 0.2f, cache.view, {0, pos0 + i, 1});
            }
            CHECK_NEAR(largest_difference(together, alone), 0.0, tolerance);
            CHECK(std::any_of(alone.begin(), alone.end(), [](float v) { return v != 0; }));
        }
    }
}

TEST(attention_decode_does_not_depend_on_threads) {
    const int n_head = 4, n_head_kv = 2, head_dim = 32, n_ctx = 2100;
    const LayerCache cache(n_head_kv, n_ctx, head_dim, 8, 8);
    const auto q = random_floats(n_head * head_dim, 9);
    std::vector<float> first;
    for (const int n_threads : {1, 2, 5}) {
        Team team(n_threads);
        Attention attention(team, {8, 64, n_head, n_head_kv, head_dim, n_ctx});
        std::vector<float> y(q.size());
        attention.dense(y.data(), q.data(), n_head, 0.3f, cache.view, {0, n_ctx - 1, 1});
        if (first.empty()) first = y;
        CHECK(y == first);
    }
}

// Lists of all positions give dense attention; lists per query head are each their own.
TEST(attention_over_a_selection) {
    const int n_head = 6, n_head_kv = 2, head_dim = 32, n_ctx = 700;
    Team team(2);
    Attention attention(team, {8, 64, n_head, n_head_kv, head_dim, n_ctx});
    const LayerCache cache(n_head_kv, n_ctx, head_dim, 8, 10);
    const auto q = random_floats(n_head * head_dim, 11);
    std::vector<float> dense(q.size()), y(q.size());
    attention.dense(dense.data(), q.data(), n_head, 0.3f, cache.view, {0, n_ctx - 1, 1});
    for (const int n_set : {n_head_kv, n_head}) {
        std::vector<int32_t> positions, count(static_cast<size_t>(n_set), n_ctx);
        for (int set = 0; set < n_set; ++set) {
            for (int pos = 0; pos < n_ctx; ++pos) positions.push_back(pos);
        }
        Selection selection{positions.data(), count.data(), n_set, n_ctx};
        attention.selected(y.data(), q.data(), n_head, 0.3f, cache.view, 0, selection);
        CHECK(y == dense);
        count[0] = 1;  // the first set sees position 0 alone: its heads return that value
        attention.selected(y.data(), q.data(), n_head, 0.3f, cache.view, 0, selection);
        const KvHead head = cache.view.head(0, 0);
        for (int d = 0; d < head_dim; ++d) CHECK_NEAR(y[d], half_to_float(head.rest[head.n_rest() + d]), 1e-6f);
        CHECK(std::equal(y.end() - head_dim, y.end(), dense.end() - head_dim));
    }
}

TEST(rms_norm_matches_the_reference) {
    for (const Isa isa : runnable()) {
        for (const int n : {1, 7, 16, 33, 512, 1000}) {
            const auto x = random_floats(n, 10), w = random_floats(n, 11);
            std::vector<float> y(x.size()), reference(x.size());
            elementwise_kernels(isa).rms_norm(y.data(), x.data(), w.data(), n, 1e-5f);
            elementwise_kernels(Isa::scalar).rms_norm(reference.data(), x.data(), w.data(), n, 1e-5f);
            for (int i = 0; i < n; ++i) CHECK_NEAR(y[i], reference[i], 1e-6f * (1 + std::fabs(reference[i])));
        }
    }
}

TEST(silu_mul_matches_the_reference) {
    for (const Isa isa : runnable()) {
        for (const int n : {1, 15, 16, 40, 1001}) {
            auto gate = random_floats(n, 12, 5.0f);
            gate[0] = -100.0f;
            const auto up = random_floats(n, 13);
            auto reference = gate;
            elementwise_kernels(isa).silu_mul(gate.data(), up.data(), n);
            elementwise_kernels(Isa::scalar).silu_mul(reference.data(), up.data(), n);
            for (int i = 0; i < n; ++i) CHECK_NEAR(gate[i], reference[i], 2e-6f * (1 + std::fabs(reference[i])));
        }
    }
}

TEST(rotation_and_halves_match_the_reference) {
    for (const Isa isa : runnable()) {
        for (const RopeLayout layout : {RopeLayout::interleaved, RopeLayout::half_split}) {
            for (const int n_rot : {2, 6, 64, 96}) {
                auto head = random_floats(n_rot + 5, 14);
                const auto cos = random_floats(n_rot / 2, 15), sin = random_floats(n_rot / 2, 16);
                auto reference = head;
                elementwise_kernels(isa).rotate(head.data(), layout, n_rot, cos.data(), sin.data());
                elementwise_kernels(Isa::scalar).rotate(reference.data(), layout, n_rot, cos.data(), sin.data());
                for (size_t i = 0; i < head.size(); ++i) CHECK_NEAR(head[i], reference[i], 1e-6f);

                std::vector<uint16_t> half(head.size()), half_reference(head.size());
                elementwise_kernels(isa).to_half(half.data(), head.data(), static_cast<int64_t>(head.size()));
                elementwise_kernels(Isa::scalar)
                    .to_half(half_reference.data(), head.data(), static_cast<int64_t>(head.size()));
                CHECK(half == half_reference);
            }
        }
    }
}
