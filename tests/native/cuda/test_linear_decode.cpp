// Matrix products of decoding against sums in double precision of the dequantised weights and the activations as the
// products see them (int8 for quantised types), over every type, odd shapes and 1 to 9 rows.
#include "backend/cuda/linear_decode.h"

#include <cmath>
#include <limits>
#include <random>

#include "backend/cpu/elementwise_kernels.h"
#include "backend/cpu/linear_kernels.h"
#include "backend/cpu/quant.h"
#include "check.h"
#include "device_weights.h"
#include "random_weights.h"

using namespace fasa;
using fasa::test::DeviceArray;
using fasa::test::DeviceWeights;
using fasa::test::RandomWeights;

namespace {

constexpr float NaN = std::numeric_limits<float>::quiet_NaN();

bool is_float(DType type) { return dtype_traits(type).block_values == 1; }

// What the products see of x [n][n_in].
std::vector<double> seen_by(DType type, const std::vector<float>& x) {
    std::vector<double> seen(x.begin(), x.end());
    if (is_float(type)) return seen;
    std::vector<int8_t> q(x.size());
    std::vector<float> d(x.size() / 32), s32(d.size()), s16(2 * d.size());
    cpu::scalar::linear_kernels().quantize(x.data(), static_cast<int64_t>(x.size()), 1,
                                           {q.data(), d.data(), s32.data(), s16.data()});
    for (size_t k = 0; k < x.size(); ++k) seen[k] = double{d[k / 32]} * q[k];
    return seen;
}

struct Expected {
    std::vector<double> y, bound;  // [n][n_out]; the bound is what rounding in float may amount to
};

Expected in_double(const WeightView& w, const std::vector<float>& x, int n) {
    const size_t n_in = static_cast<size_t>(w.n_in), n_out = static_cast<size_t>(w.n_out);
    const std::vector<double> seen = seen_by(w.dtype, x);
    Expected result{std::vector<double>(n_out * static_cast<size_t>(n)), {}};
    result.bound = result.y;
    std::vector<float> weights(n_in);
    for (size_t r = 0; r < n_out; ++r) {
        cpu::dequantize_row(w.dtype, static_cast<const uint8_t*>(w.data) + r * w.row_bytes, weights.data(), w.n_in);
        double largest = 0;  // a zero weight may still be the difference of two large terms
        for (const float value : weights) largest = std::max(largest, std::fabs(double{value}));
        for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
            double sum = 0, terms = 0;
            for (size_t k = 0; k < n_in; ++k) {
                sum += weights[k] * seen[i * n_in + k];
                terms += std::fabs(seen[i * n_in + k]);
            }
            result.y[i * n_out + r] = sum;
            result.bound[i * n_out + r] = 5e-7 * largest * terms;
        }
    }
    return result;
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

// Scratch of the size that take() says.
struct Scratch {
    DeviceArray<uint8_t> memory;
    cuda::DecodeScratch scratch;

    static size_t bytes(int64_t n_in) {
        Arena measure;
        cuda::DecodeScratch::take(measure, n_in);
        return measure.used();
    }
    explicit Scratch(int64_t n_in) : memory(bytes(n_in)) {
        Arena arena(memory.data());
        scratch = cuda::DecodeScratch::take(arena, n_in);
    }
};

std::vector<float> product(const WeightView& w, const std::vector<float>& x, int n) {
    const DeviceWeights weights(w);
    const DeviceArray<float> in(x), y(std::vector<float>(static_cast<size_t>(n * w.n_out), NaN));
    const Scratch scratch(w.n_in);
    const LinearOut out = {weights.view(), nullptr, y.data(), false};
    cuda::linear_decode(&out, 1, {in.data()}, n, scratch.scratch, nullptr);
    return y.host();
}

void check_product(DType type, int64_t n_out, int64_t n_in, int n, uint32_t seed) {
    const RandomWeights w(type, n_out, n_in, seed);
    const std::vector<float> x = test::random_floats(n * n_in, seed + 1);
    const double share = worst(product(w.view(), x, n), in_double(w.view(), x, n));
    check::report(share <= 1, __FILE__, __LINE__,
                  std::string(dtype_traits(type).name) + " n_out=" + std::to_string(n_out) +
                      " n_in=" + std::to_string(n_in) + " n=" + std::to_string(n) + ": " + std::to_string(share) +
                      " of what rounding allows");
}

// Two of the int8 activations one step off: a norm whose sum is taken in another order may round them otherwise.
void allow_steps(Expected& expected, const WeightView& w, const std::vector<float>& x) {
    float largest = 0;
    for (const float value : x) largest = std::max(largest, std::fabs(value));
    std::vector<float> weights(static_cast<size_t>(w.n_in));
    for (size_t i = 0; i < expected.bound.size(); ++i) {
        const size_t r = i % static_cast<size_t>(w.n_out);
        cpu::dequantize_row(w.dtype, static_cast<const uint8_t*>(w.data) + r * w.row_bytes, weights.data(), w.n_in);
        float largest_weight = 0;
        for (const float value : weights) largest_weight = std::max(largest_weight, std::fabs(value));
        expected.bound[i] += 2 * largest / 127 * largest_weight;
    }
}

// Row lengths, in blocks for types that have them.
int64_t row_length(DType type, int64_t n_blocks) {
    const int block = dtype_traits(type).block_values;
    return block == 1 ? n_blocks * 37 - 5 : n_blocks * block;
}

}  // namespace

TEST(every_type_and_number_of_rows) {
    for (const DType type : test::ALL_DTYPES) {
        for (int n = 1; n <= cuda::n_decode_max; ++n) {
            check_product(type, 35, row_length(type, 1 + n % 3), n, static_cast<uint32_t>(n));
        }
    }
}

TEST(odd_shapes) {
    struct Shape {
        int64_t n_out, n_blocks;
    };
    for (const DType type : test::ALL_DTYPES) {
        uint32_t seed = 1;
        for (const Shape shape : {Shape{1, 1}, {3, 2}, {33, 5}, {100, 4}, {257, 1}, {34, 11}}) {
            for (const int n : {1, 2, 3})
                check_product(type, shape.n_out, row_length(type, shape.n_blocks), n, seed += 2);
        }
    }
}

TEST(float_rows_may_end_anywhere) {
    for (const DType type : {FASA_DTYPE_F32, FASA_DTYPE_F16, FASA_DTYPE_BF16}) {
        for (const int64_t n_in : {1, 2, 3, 7, 8, 255, 256, 257, 1023, 1025}) {
            for (const int n : {1, 2, 4, 5}) check_product(type, 9, n_in, n, static_cast<uint32_t>(n_in));
        }
    }
}

// Rows that need a whole block, several passes, or activations quantised by another kernel.
TEST(long_rows) {
    for (const int n : {1, 2, 3}) {
        check_product(FASA_DTYPE_Q4_K, 9, 14336, n, 1);
        check_product(FASA_DTYPE_Q4_K, 5, 18944, n, 2);
        check_product(FASA_DTYPE_Q6_K, 7, 11008, n, 3);
        check_product(FASA_DTYPE_Q8_0, 3, 40000, n, 4);
        check_product(FASA_DTYPE_F16, 6, 14336, n, 5);
        check_product(FASA_DTYPE_F32, 6, 4100, n, 6);
    }
}

// More rows than the sums of the teams have room for at a time, over several passes and goes.
TEST(many_rows) {
    check_product(FASA_DTYPE_Q4_0, 20000, 64, 1, 1);
    check_product(FASA_DTYPE_Q8_0, 4000, 4096, 9, 2);
    check_product(FASA_DTYPE_F32, 1500, 2500, 9, 3);
}

// One after the other in a launch, of several types and of one.
TEST(several_products_with_bias_and_sum) {
    constexpr int64_t n_in = 768;
    const DType types[][3] = {{FASA_DTYPE_Q4_K, FASA_DTYPE_Q6_K, FASA_DTYPE_F16},
                              {FASA_DTYPE_Q5_K, FASA_DTYPE_Q5_K, FASA_DTYPE_Q5_K}};
    const DeviceArray<float> bias(test::random_floats(80, 4));
    const std::vector<float> host_bias = bias.host();
    const Scratch scratch(n_in);
    for (const auto& type : types) {
        const RandomWeights q(type[0], 70, n_in, 1), k(type[1], 19, n_in, 2), v(type[2], 33, n_in, 3);
        const DeviceWeights device_q(q.view()), device_k(k.view()), device_v(v.view());
        for (int n = 1; n <= cuda::n_decode_max; ++n) {
            const size_t rows = static_cast<size_t>(n);
            const std::vector<float> x = test::random_floats(n * n_in, 5);
            const DeviceArray<float> in(x), yq(std::vector<float>(rows * 70, NaN)),
                yk(std::vector<float>(rows * 19, 0.25f)), yv(std::vector<float>(rows * 33, NaN));
            const LinearOut out[] = {{device_q.view(), bias.data() + 1, yq.data(), false},
                                     {device_k.view(), bias.data() + 3, yk.data(), true},
                                     {device_v.view(), nullptr, yv.data(), false}};
            cuda::linear_decode(out, 3, {in.data()}, n, scratch.scratch, nullptr);
            Expected eq = in_double(q.view(), x, n), ek = in_double(k.view(), x, n);
            for (size_t i = 0; i < eq.y.size(); ++i) eq.y[i] += host_bias[1 + i % 70];
            for (size_t i = 0; i < ek.y.size(); ++i) ek.y[i] += host_bias[3 + i % 19] + 0.25f;
            CHECK(worst(yq.host(), eq) <= 1);
            CHECK(worst(yk.host(), ek) <= 1);
            CHECK(worst(yv.host(), in_double(v.view(), x, n)) <= 1);
        }
    }
}

TEST(more_products_than_a_launch_takes) {
    const RandomWeights w(FASA_DTYPE_Q5_1, 21, 96, 1);
    const DeviceWeights weights(w.view());
    const Scratch scratch(96);
    for (const int n : {1, 6}) {
        const std::vector<float> x = test::random_floats(n * 96, 2);
        const DeviceArray<float> in(x), y(std::vector<float>(static_cast<size_t>(n) * 21 * 6, NaN));
        std::vector<LinearOut> out;
        for (int p = 0; p < 6; ++p) out.push_back({weights.view(), nullptr, y.data() + p * n * 21, false});
        cuda::linear_decode(out.data(), 6, {in.data()}, n, scratch.scratch, nullptr);
        Expected expected = in_double(w.view(), x, n);
        const size_t size = expected.y.size();
        for (size_t i = size; i < 6 * size; ++i) {
            expected.y.push_back(expected.y[i % size]);
            expected.bound.push_back(expected.bound[i % size]);
        }
        CHECK(worst(y.host(), expected) <= 1);
    }
}

// The norm in front, with and without rows that are quantised already: as the norm alone and then the product.
TEST(norm_and_product_in_one_call) {
    for (const DType type : {FASA_DTYPE_Q4_K, FASA_DTYPE_Q6_K, FASA_DTYPE_Q8_0, FASA_DTYPE_F16, FASA_DTYPE_F32}) {
        for (const int64_t n_in : {256, 4352}) {
            const RandomWeights w(type, 41, n_in, 1);
            const DeviceWeights weights(w.view());
            const DeviceArray<float> norm(test::random_floats(n_in, 3));
            const Scratch scratch(n_in);
            for (const int n : {1, 2, 5, 9}) {
                const size_t n_values = static_cast<size_t>(n * n_in);
                const DeviceArray<float> x(test::random_floats(n * n_in, 2)), normed(n_values);
                DeviceArray<float> y(std::vector<float>(static_cast<size_t>(n) * 41, NaN));
                const DeviceArray<int8_t> q(n_values);
                const DeviceArray<float> d(n_values / 32);
                cuda::rms_norm(normed.data(), {q.data(), d.data()}, x.data(), norm.data(), n, static_cast<int>(n_in),
                               1e-5f, nullptr);
                Expected expected = in_double(w.view(), normed.host(), n);
                if (!is_float(type)) allow_steps(expected, w.view(), normed.host());
                const LinearOut out = {weights.view(), nullptr, y.data(), false};
                cuda::linear_decode(&out, 1, {x.data(), norm.data(), 1e-5f, {}}, n, scratch.scratch, nullptr);
                CHECK(worst(y.host(), expected) <= 1);
                y.set(std::vector<float>(y.size(), NaN));
                cuda::linear_decode(&out, 1, {x.data(), norm.data(), 1e-5f, {q.data(), d.data()}}, n, scratch.scratch,
                                    nullptr);
                CHECK(worst(y.host(), expected) <= 1);
                y.set(std::vector<float>(y.size(), NaN));
                cuda::linear_decode(&out, 1, {normed.data(), nullptr, 0, {q.data(), d.data()}}, n, scratch.scratch,
                                    nullptr);
                CHECK(worst(y.host(), expected) <= 1);
            }
        }
    }
}

TEST(gate_and_up_in_one_call) {
    for (const DType type : {FASA_DTYPE_Q4_K, FASA_DTYPE_Q5_0, FASA_DTYPE_BF16}) {
        for (const int64_t n_out : {1, 50, 301}) {
            const int64_t n_in = 512;
            const RandomWeights gate(type, n_out, n_in, 1), up(type, n_out, n_in, 2);
            const DeviceWeights device_gate(gate.view()), device_up(up.view());
            CHECK(cuda::glu_fits(device_gate.view(), device_up.view()));
            const Scratch scratch(n_in);
            for (const int n : {1, 2, 4, 7}) {
                const std::vector<float> x = test::random_floats(n * n_in, 3);
                const DeviceArray<float> in(x), y(std::vector<float>(static_cast<size_t>(n * n_out), NaN));
                cuda::linear_glu_decode(y.data(), device_gate.view(), device_up.view(), {in.data()}, n, scratch.scratch,
                                        nullptr);
                Expected g = in_double(gate.view(), x, n), u = in_double(up.view(), x, n);
                for (size_t i = 0; i < g.y.size(); ++i) {  // |silu'| <= 1.1
                    const double silu = g.y[i] / (1 + std::exp(-g.y[i]));
                    g.bound[i] = 1.1 * g.bound[i] * std::fabs(u.y[i]) + std::fabs(silu) * u.bound[i] +
                                 1e-6 * std::fabs(silu * u.y[i]);
                    g.y[i] = silu * u.y[i];
                }
                CHECK(worst(y.host(), g) <= 1);
            }
        }
    }
}

TEST(a_nan_reaches_every_product_of_its_row_and_no_other) {
    for (const DType type : {FASA_DTYPE_F32, FASA_DTYPE_Q8_0, FASA_DTYPE_Q4_K, FASA_DTYPE_Q6_K, FASA_DTYPE_IQ4_XS}) {
        for (const int n : {1, 2, 6}) {
            const RandomWeights w(type, 20, 512, 3);
            std::vector<float> x = test::random_floats(n * 512, 4);
            x[static_cast<size_t>(n - 1) * 512 + 300] = NaN;
            const std::vector<float> y = product(w.view(), x, n);
            for (size_t i = 0; i < y.size(); ++i) CHECK(std::isnan(y[i]) == (i / 20 == static_cast<size_t>(n - 1)));
        }
    }
}

TEST(the_same_call_gives_the_same_bits) {
    const RandomWeights w(FASA_DTYPE_Q3_K, 300, 1280, 3);
    for (const int n : {1, 9}) {
        const std::vector<float> x = test::random_floats(n * 1280, 4);
        CHECK(product(w.view(), x, n) == product(w.view(), x, n));
    }
}

TEST(too_many_rows_are_refused) {
    const LinearOut out = {{FASA_DTYPE_F32, &out, 4, 1, 16}, nullptr, nullptr, false};
    CHECK_THROWS(cuda::linear_decode(&out, 1, {nullptr}, 10, {}, nullptr), FASA_ERROR_ARGUMENT, "10");
    CHECK_THROWS(cuda::linear_decode(&out, 1, {nullptr}, 0, {}, nullptr), FASA_ERROR_ARGUMENT, "0 rows");
}
