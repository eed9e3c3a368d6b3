// Dense attention and the row-wise ops: every instruction set against the scalar reference, the reference against
// double precision, over odd shapes.
#include <algorithm>
#include <cmath>
#include <random>

#include "backend/cpu/attention.h"
#include "backend/cpu/elementwise_kernels.h"
#include "base/half.h"
#include "check.h"

using namespace fasa;
using namespace fasa::cpu;

namespace {

// Scores reach about 15, whose rounding in single precision shifts weights by 1e-6, and values reach 4.
constexpr double tolerance = 1e-5;

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

// Attention of one query over n rows, in double precision.
std::vector<double> exact(const float* q, int64_t q_stride, int head_dim, const uint16_t* rows, int n) {
    std::vector<double> score, y(static_cast<size_t>(head_dim));
    for (int j = 0; j < n; ++j) {
        double dot = 0;
        for (int d = 0; d < head_dim; ++d) dot += double{q[d * q_stride]} * half_to_float(rows[j * 2 * head_dim + d]);
        score.push_back(dot);
    }
    const double top = *std::max_element(score.begin(), score.end());
    double sum = 0;
    for (double& s : score) sum += s = std::exp(s - top);
    for (int j = 0; j < n; ++j) {
        for (int d = 0; d < head_dim; ++d) y[d] += score[j] / sum * half_to_float(rows[(j * 2 + 1) * head_dim + d]);
    }
    return y;
}

void check_chunk(const AttentionKernels& kernels, int n_q, int head_dim, int n_pos) {
    const int stride = padded(head_dim);
    std::vector<float> q(static_cast<size_t>(n_q * stride)), values(q.size(), NAN);
    const auto dense = random_floats(int64_t{n_q} * head_dim, 1, 0.3f);
    for (int i = 0; i < n_q; ++i) std::copy_n(&dense[i * head_dim], head_dim, &q[i * stride]);
    const auto rows = random_halves(int64_t{n_pos} * 2 * head_dim, 2);
    std::vector<SoftmaxState> state(static_cast<size_t>(n_q));
    for (int i = 0; i < n_q; ++i) state[i].values = &values[i * stride];
    kernels.chunk(q.data(), n_q, head_dim, rows.data(), n_pos, state.data());
    double worst = 0;
    for (int i = 0; i < n_q; ++i) {
        const auto y = exact(&q[i * stride], 1, head_dim, rows.data(), n_pos);
        for (int d = 0; d < head_dim; ++d) worst = std::max(worst, std::fabs(state[i].values[d] / state[i].sum - y[d]));
    }
    CHECK_NEAR(worst, 0.0, tolerance);
}

void check_tile(const AttentionKernels& kernels, int n_q, int head_dim, int n_first) {
    const int n = padded(n_q), n_pos = n_first + n_q - 1;
    std::vector<float> qt(static_cast<size_t>(head_dim * n)), out(qt.size(), NAN);
    std::vector<float> scratch(static_cast<size_t>(tile_scratch(head_dim)), NAN);
    const auto dense = random_floats(int64_t{n_q} * head_dim, 3, 0.3f);
    std::vector<int32_t> n_visible;
    for (int i = 0; i < n; ++i) n_visible.push_back(n_first + std::min(i, n_q - 1));
    for (int i = 0; i < n_q; ++i) {
        for (int d = 0; d < head_dim; ++d) qt[d * n + i] = dense[i * head_dim + d];
    }
    const auto rows = random_halves(int64_t{n_pos} * 2 * head_dim, 4);
    kernels.tile(qt.data(), n_q, head_dim, rows.data(), n_visible.data(), out.data(), scratch.data());
    double worst = 0;
    for (int i = 0; i < n_q; ++i) {
        const auto y = exact(&qt[i], n, head_dim, rows.data(), n_visible[i]);
        for (int d = 0; d < head_dim; ++d) worst = std::max(worst, std::fabs(out[d * n + i] - y[d]));
    }
    CHECK_NEAR(worst, 0.0, tolerance);
}

}  // namespace

TEST(attention_decode_chunks) {
    for (const Isa isa : runnable()) {
        for (const int head_dim : {64, 128, 80, 20, 2, 256}) {
            for (const int n_q : {1, 2, 3, 4, 5, 7}) {
                for (const int n_pos : {1, 31, 32, 33, 200, kv_chunk})
                    check_chunk(attention_kernels(isa), n_q, head_dim, n_pos);
            }
        }
    }
}

TEST(attention_prefill_tiles) {
    for (const Isa isa : runnable()) {
        for (const int head_dim : {64, 128, 80, 22}) {
            for (const int n_q : {1, 5, 16, 17, 33, max_queries}) {
                for (const int n_first : {1, 2, 64, 100}) check_tile(attention_kernels(isa), n_q, head_dim, n_first);
            }
        }
    }
}

// A score far above all others, and one far below, must neither overflow nor vanish.
TEST(attention_extreme_scores) {
    const int head_dim = 16, n_pos = 70;
    std::vector<float> q(static_cast<size_t>(padded(head_dim)), 100.0f), values(q.size());
    std::vector<uint16_t> rows = random_halves(int64_t{n_pos} * 2 * head_dim, 5);
    for (int d = 0; d < head_dim; ++d) {
        rows[50 * 2 * head_dim + d] = float_to_half(1000.0f);
        rows[3 * 2 * head_dim + d] = float_to_half(-1000.0f);
    }
    for (const Isa isa : runnable()) {
        SoftmaxState state{0, 0, values.data()};
        attention_kernels(isa).chunk(q.data(), 1, head_dim, rows.data(), n_pos, &state);
        for (int d = 0; d < head_dim; ++d) {
            CHECK_NEAR(state.values[d] / state.sum, half_to_float(rows[(50 * 2 + 1) * head_dim + d]), 1e-6f);
        }
    }
}

TEST(attention_whole_op_equals_rows_one_by_one) {
    const int n_head = 6, n_head_kv = 2, head_dim = 24, n_ctx = 1100, n = 37, pos0 = 1030;
    for (const int n_threads : {1, 3}) {
        Team team(n_threads);
        Attention attention(team, {64, 64, n_head, n_head_kv, head_dim, n_ctx});
        auto cache = random_halves(int64_t{n_head_kv} * n_ctx * 2 * head_dim, 6);
        const KvView kv{cache.data(), n_ctx, n_head_kv, head_dim};
        const auto q = random_floats(int64_t{n} * n_head * head_dim, 7);
        std::vector<float> together(q.size()), alone(q.size());
        attention.run(together.data(), q.data(), n_head, 0.2f, kv, {0, pos0, n});
        for (int i = 0; i < n; ++i) {
            const int64_t at = int64_t{i} * n_head * head_dim;
            attention.run(&alone[at], &q[at], n_head, 0.2f, kv, {0, pos0 + i, 1});
        }
        double worst = 0;
        for (size_t i = 0; i < q.size(); ++i) worst = std::max<double>(worst, std::fabs(together[i] - alone[i]));
        CHECK_NEAR(worst, 0.0, tolerance);
        CHECK(std::any_of(alone.begin(), alone.end(), [](float v) { return v != 0; }));
    }
}

TEST(attention_decode_does_not_depend_on_threads) {
    const int n_head = 4, n_head_kv = 2, head_dim = 32, n_ctx = 2100;
    auto cache = random_halves(int64_t{n_head_kv} * n_ctx * 2 * head_dim, 8);
    const KvView kv{cache.data(), n_ctx, n_head_kv, head_dim};
    const auto q = random_floats(n_head * head_dim, 9);
    std::vector<float> first;
    for (const int n_threads : {1, 2, 5}) {
        Team team(n_threads);
        Attention attention(team, {8, 64, n_head, n_head_kv, head_dim, n_ctx});
        std::vector<float> y(q.size());
        attention.run(y.data(), q.data(), n_head, 0.3f, kv, {0, n_ctx - 1, 1});
        if (first.empty()) first = y;
        CHECK(y == first);
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
