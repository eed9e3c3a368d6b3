// Matrix products: the scalar reference against dequantised weights in double precision, every instruction set against
// the scalar reference, and Linear against both, over odd shapes.
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/linear.h"
#include "backend/cpu/linear_kernels.h"
#include "base/buffer.h"
#include "base/cpu.h"
#include "check.h"
#include "random_weights.h"

using namespace fasa;
using namespace fasa::cpu;
using fasa::test::RandomWeights;

namespace {

// All tables that this processor can run, the scalar one first.
std::vector<const LinearKernels*> runnable_kernels() {
    std::vector<const LinearKernels*> tables = {&cpu::scalar::linear_kernels()};
#if FASA_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2) tables.push_back(&avx2::linear_kernels());
    if (avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
        tables.push_back(&avx512::linear_kernels());
    }
#endif
    return tables;
}

// Activations with their memory.
struct Quantized {
    std::vector<int8_t> q;
    std::vector<float> d, s32, s16;

    explicit Quantized(size_t n) : q(n), d(n / 32), s32(n / 32), s16(n / 16) {}
    Activations view() { return {q.data(), d.data(), s32.data(), s16.data()}; }
    bool same_bits(const Quantized& other) const {
        const auto same = [](const auto& a, const auto& b) {
            return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
        };
        return same(q, other.q) && same(d, other.d) && same(s32, other.s32) && same(s16, other.s16);
    }
};

Quantized quantized(const LinearKernels& kernels, const std::vector<float>& x, int n_tokens = 1) {
    Quantized result(x.size() / 32 * 32);
    kernels.quantize(x.data(), static_cast<int64_t>(result.q.size()), n_tokens, result.view());
    return result;
}

// What the products see of x: x itself, or its int8 form.
std::vector<double> seen_by(DType type, const std::vector<float>& x, const Quantized& a) {
    std::vector<double> seen(x.begin(), x.end());
    if (!is_float(type)) {
        for (size_t k = 0; k < a.q.size(); ++k) seen[k] = static_cast<double>(a.d[k / 32]) * a.q[k];
    }
    return seen;
}

struct Expected {
    std::vector<double> y, bound;  // [n][n_out]; the bound is what rounding in float may amount to
};

Expected in_double(const WeightView& w, const std::vector<double>& x, int n) {
    const size_t n_in = static_cast<size_t>(w.n_in), n_out = static_cast<size_t>(w.n_out);
    Expected result{std::vector<double>(n_out * static_cast<size_t>(n)), {}};
    result.bound = result.y;
    std::vector<float> weights(n_in);
    for (size_t r = 0; r < n_out; ++r) {
        dequantize_row(w.dtype, static_cast<const uint8_t*>(w.data) + r * w.row_bytes, weights.data(), w.n_in);
        double largest = 0;  // a zero weight may still be the difference of two large terms
        for (const float value : weights) largest = std::max(largest, std::fabs(static_cast<double>(value)));
        for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
            double sum = 0, terms = 0;
            for (size_t k = 0; k < n_in; ++k) {
                sum += weights[k] * x[i * n_in + k];
                terms += std::fabs(x[i * n_in + k]);
            }
            result.y[i * n_out + r] = sum;
            result.bound[i * n_out + r] = 5e-7 * largest * terms;
        }
    }
    return result;
}

std::vector<float> product(const LinearKernels& kernels, const WeightView& w, const std::vector<float>& x, int n) {
    std::vector<float> y(static_cast<size_t>(n * w.n_out), NAN);
    Quantized a = quantized(kernels, x, n);
    const Buffer scratch(kernels.scratch_bytes(), "scratch of a test");
    kernels.rows({{w, nullptr, y.data(), false}, x.data(), a.view(), n}, 0, w.n_out, scratch.data());
    return y;
}

// The largest error, as a share of what is allowed.
double worst(const std::vector<float>& y, const Expected& expected) {
    double result = 0;
    for (size_t i = 0; i < y.size(); ++i) {
        const double share = std::fabs(y[i] - expected.y[i]) / expected.bound[i];
        result = std::max(result, std::isnan(share) ? std::numeric_limits<double>::infinity() : share);
    }
    return result;
}

// One output row, odd numbers of them around the width of every tile, and input of odd lengths where a type allows it.
struct Shape {
    int64_t n_out, n_in_blocks;
};
constexpr Shape SHAPES[] = {{1, 1}, {3, 2}, {15, 3}, {16, 1}, {17, 5}, {33, 2}, {47, 9}, {64, 3}, {100, 4}, {34, 33}};

void check_kernels(DType type, int64_t n_out, int64_t n_in, int n, uint32_t seed) {
    const RandomWeights w(type, n_out, n_in, seed);
    const std::vector<float> x = test::random_floats(n * n_in, seed + 1);
    const Quantized a = quantized(cpu::scalar::linear_kernels(), x);
    const Expected expected = in_double(w.view(), seen_by(type, x, a), n);
    for (const LinearKernels* kernels : runnable_kernels()) {
        const double share = worst(product(*kernels, w.view(), x, n), expected);
        const std::string what = std::string(kernels->name) + " " + dtype_traits(type).name +
                                 " n_out=" + std::to_string(n_out) + " n_in=" + std::to_string(n_in) +
                                 " n=" + std::to_string(n);
        check::report(share <= 1, __FILE__, __LINE__, what + ": " + std::to_string(share) + " of what rounding allows");
    }
}

void check_kernels(DType type, Shape shape, int n, uint32_t seed) {
    const int block = dtype_traits(type).block_values;
    check_kernels(type, shape.n_out, block == 1 ? shape.n_in_blocks * 37 - 5 : shape.n_in_blocks * block, n, seed);
}

}  // namespace

TEST(every_kernel_gives_the_product_of_the_dequantised_weights) {
    for (const DType type : test::ALL_DTYPES) {
        uint32_t seed = 1;
        for (const Shape shape : SHAPES) {
            for (const int n : {1, 2, 5}) check_kernels(type, shape, n, seed += 2);
        }
    }
}

TEST(any_number_of_tokens_gives_the_same_products) {
    for (const DType type : test::ALL_DTYPES) {
        for (int n = 1; n <= 20; ++n) check_kernels(type, {35, 2}, n, static_cast<uint32_t>(n));
        check_kernels(type, {18, 3}, 67, 5);
    }
}

TEST(float_rows_may_end_anywhere) {
    for (const DType type : {FASA_DTYPE_F32, FASA_DTYPE_F16, FASA_DTYPE_BF16}) {
        for (const int64_t n_in : {1, 2, 3, 255, 256, 257, 511, 1023, 1024, 1025}) {
            for (const int n : {1, 4}) check_kernels(type, 33, n_in, n, static_cast<uint32_t>(n_in));
        }
    }
}

TEST(more_tokens_and_rows_than_are_worked_on_at_once) {
    check_kernels(FASA_DTYPE_F16, 150, 40, 515, 1);
    check_kernels(FASA_DTYPE_Q8_0, 150, 96, 515, 2);
    check_kernels(FASA_DTYPE_Q2_K, 150, 256, 1030, 3);
}

TEST(activations_have_the_same_bits_on_every_instruction_set) {
    std::vector<float> x = test::random_floats(4096, 7);
    x[40] = 1e30f;
    x[70] = std::numeric_limits<float>::quiet_NaN();
    x[100] = -std::numeric_limits<float>::infinity();
    for (size_t k = 128; k < 160; ++k) x[k] = 0;
    for (size_t k = 160; k < 192; ++k) x[k] *= 1e-44f;
    for (size_t k = 192; k < 224; ++k) x[k] = 0.5f * static_cast<float>(k % 5);  // ties
    const Quantized reference = quantized(cpu::scalar::linear_kernels(), x);
    CHECK(std::isnan(reference.d[2]) && std::isnan(reference.d[3]));
    CHECK(reference.d[4] == 0 && reference.d[5] == 0);
    for (const LinearKernels* kernels : runnable_kernels()) {
        Quantized a = quantized(*kernels, x);
        for (const size_t block : {2u, 3u}) {  // any NaN will do
            CHECK(std::isnan(a.d[block]) && std::isnan(a.s32[block]) && std::isnan(a.s16[2 * block + 1]));
            a.d[block] = reference.d[block];
            a.s32[block] = reference.s32[block];
            a.s16[2 * block] = reference.s16[2 * block];
            a.s16[2 * block + 1] = reference.s16[2 * block + 1];
        }
        CHECK(a.same_bits(reference));
    }
}

TEST(activations_are_within_half_a_step) {
    const std::vector<float> x = test::random_floats(4096, 8);
    const Quantized a = quantized(cpu::scalar::linear_kernels(), x);
    bool within = true, sums = true;
    for (size_t k = 0; k < x.size(); ++k) {
        within &= std::fabs(a.d[k / 32] * static_cast<float>(a.q[k]) - x[k]) <= 0.5001f * a.d[k / 32];
    }
    for (size_t b = 0; b < a.d.size(); ++b) {
        int sum = 0;
        for (size_t k = 32 * b; k < 32 * b + 32; ++k) sum += a.q[k];
        sums &= a.s32[b] == a.d[b] * static_cast<float>(sum);
        sums &= std::fabs(a.s16[2 * b] + a.s16[2 * b + 1] - a.s32[b]) <= 1e-5f * a.d[b] * 4064;
    }
    CHECK(within);
    CHECK(sums);
}

TEST(a_nan_reaches_every_product_of_its_token_and_no_other) {
    for (const DType type : {FASA_DTYPE_F32, FASA_DTYPE_Q8_0, FASA_DTYPE_Q4_K, FASA_DTYPE_Q6_K}) {
        for (const int n : {2, 12}) {
            const RandomWeights w(type, 20, 512, 3);
            std::vector<float> x = test::random_floats(n * 512, 4);
            x[512 + 300] = std::numeric_limits<float>::quiet_NaN();
            for (const LinearKernels* kernels : runnable_kernels()) {
                const std::vector<float> y = product(*kernels, w.view(), x, n);
                for (size_t i = 0; i < y.size(); ++i) CHECK(std::isnan(y[i]) == (i / 20 == 1));
            }
        }
    }
}

TEST(linear_runs_several_products_with_bias_and_sum) {
    constexpr int64_t n_in = 768;
    const RandomWeights q(FASA_DTYPE_Q4_K, 70, n_in, 1), k(FASA_DTYPE_Q6_K, 19, n_in, 2),
        v(FASA_DTYPE_F16, 33, n_in, 3);
    const std::vector<float> bias = test::random_floats(70, 4);
    for (const int n : {1, 2, 3, 7, 8, 9, 20, 64}) {
        const std::vector<float> x = test::random_floats(n * n_in, 5);
        const Quantized a = quantized(linear_kernels(), x);
        std::vector<std::vector<float>> first;
        for (int n_threads = 1; n_threads <= 3; ++n_threads) {
            std::vector<float> yq(static_cast<size_t>(n) * 70, NAN), yv(static_cast<size_t>(n) * 33, NAN);
            std::vector<float> yk(static_cast<size_t>(n) * 19, 0.25f);
            const LinearOut out[] = {{q.view(), bias.data(), yq.data(), false},
                                     {k.view(), bias.data() + 8, yk.data(), true},
                                     {v.view(), nullptr, yv.data(), false}};
            Team team(n_threads);
            Linear linear(team, n, n_in);
            linear.run(out, 3, x.data(), n);

            Expected eq = in_double(q.view(), seen_by(FASA_DTYPE_Q4_K, x, a), n);
            Expected ek = in_double(k.view(), seen_by(FASA_DTYPE_Q6_K, x, a), n);
            for (size_t i = 0; i < eq.y.size(); ++i) eq.y[i] += bias[i % 70];
            for (size_t i = 0; i < ek.y.size(); ++i) ek.y[i] += bias[8 + i % 19] + 0.25f;
            CHECK(worst(yq, eq) <= 1);
            CHECK(worst(yk, ek) <= 1);
            CHECK(worst(yv, in_double(v.view(), seen_by(FASA_DTYPE_F16, x, a), n)) <= 1);
            if (first.empty()) first = {yq, yk, yv};
            CHECK(first == (std::vector<std::vector<float>>{yq, yk, yv}));  // whatever the number of threads
        }
    }
}

TEST(the_table_in_use_is_that_of_the_instruction_set_in_use) { CHECK(cpu_info().name == linear_kernels().name); }

TEST(linear_refuses_rows_that_its_kernels_cannot_address) {
    Team team(1);
    CHECK_THROWS(Linear(team, 1, (int64_t{1} << 24) + 32), FASA_ERROR_UNSUPPORTED, "16777248");
}
