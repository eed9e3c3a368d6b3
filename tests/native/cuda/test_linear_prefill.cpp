// Matrix products of the CUDA backend for many rows, of every type, against double precision.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "backend/cpu/quant.h"
#include "backend/cuda/linear_prefill.h"
#include "backend/cuda/weights.h"
#include "base/half.h"
#include "check.h"
#include "device_array.h"
#include "random_weights.h"

using namespace fasa;
using cuda::LinearPrefill;
using fasa::test::DeviceArray;
using fasa::test::RandomWeights;

namespace {

// A matrix on the device, and what the file says.
class Uploaded {
   public:
    explicit Uploaded(const WeightView& w)
        : values(static_cast<size_t>(w.n_out * w.n_in)),
          memory_(static_cast<size_t>(w.n_out) * cuda::device_row_bytes(w.dtype, w.n_in)) {
        for (int64_t r = 0; r < w.n_out; ++r) {
            cpu::dequantize_row(w.dtype, static_cast<const uint8_t*>(w.data) + static_cast<size_t>(r) * w.row_bytes,
                                &values[static_cast<size_t>(r * w.n_in)], w.n_in);
        }
        void* host = nullptr;
        DeviceArray<uint8_t> device(n_staged);
        cuda::check(cudaMallocHost(&host, n_staged), "allocating for a test");
        view = cuda::upload(memory_.data(), w, {host, device.data(), n_staged}, nullptr, {});
        cudaFreeHost(host);
    }

    WeightView view;
    std::vector<float> values;  // [n_out][n_in]

   private:
    static constexpr size_t n_staged = 1 << 16;
    DeviceArray<uint8_t> memory_;
};

// A LinearPrefill with its memory.
struct Linear {
    Linear(int n_max, int64_t n_in_max, int64_t n_unpacked)
        : scratch(LinearPrefill::scratch_bytes({n_max, n_in_max, n_unpacked})),
          op({n_max, n_in_max, n_unpacked}, scratch.data()) {}
    DeviceArray<uint8_t> scratch;
    LinearPrefill op;
};

double to_half(double x) { return half_to_float(float_to_half(static_cast<float>(x))); }

double largest_of(const float* x, int64_t n) {
    double largest = 0;
    for (int64_t k = 0; k < n; ++k) largest = std::max(largest, std::fabs(static_cast<double>(x[k])));
    return largest;
}

// The power of two below, divided by 2^14; 1 where it need not be anything else.
double row_scale(double largest) {
    if (largest == 0 || (largest >= 0x1p-6 && largest < 0x1p15)) return 1;
    return std::ldexp(1.0, std::max(std::ilogb(largest) - 14, -64));
}

double weight_scale(const Uploaded& w) {
    if (w.view.dtype != FASA_DTYPE_F32 && w.view.dtype != FASA_DTYPE_BF16) return 1;
    return std::ldexp(1.0, std::ilogb(largest_of(w.values.data(), w.view.n_in * w.view.n_out)) - 14);
}

std::vector<double> rounded(const float* x, int64_t n, double scale) {
    std::vector<double> result;
    for (int64_t k = 0; k < n; ++k) result.push_back(to_half(x[k] / scale) * scale);
    return result;
}

// The largest error as a share of what is allowed, against exact sums of the rounded operands: float sums in tensor
// cores, which cut off below the last place, and two operands that may have been rounded the other way, as a product
// and a sum are one rounding or two.
double worst(const std::vector<float>& y, const Uploaded& w, const std::vector<float>& x, int n,
             const std::vector<float>& bias, const std::vector<float>& start) {
    const int64_t n_in = w.view.n_in, n_out = w.view.n_out;
    double result = 0;
    const std::vector<double> wr = rounded(w.values.data(), n_in * n_out, weight_scale(w));
    for (int64_t i = 0; i < n; ++i) {
        const float* xi = &x[static_cast<size_t>(i * n_in)];
        const double x_largest = largest_of(xi, n_in);
        const std::vector<double> xr = rounded(xi, n_in, row_scale(x_largest));
        for (int64_t r = 0; r < n_out; ++r) {
            const size_t at = static_cast<size_t>(i * n_out + r);
            double sum = 0, terms = 0, w_largest = 0;
            for (int64_t k = 0; k < n_in; ++k) {
                const double weight = wr[static_cast<size_t>(r * n_in + k)];
                sum += weight * xr[static_cast<size_t>(k)];
                terms += std::fabs(weight * xr[static_cast<size_t>(k)]);
                w_largest = std::max(w_largest, std::fabs(weight));
            }
            const double before = (bias.empty() ? 0 : bias[static_cast<size_t>(r)]) + (start.empty() ? 0 : start[at]);
            const double bound = 1e-5 * (terms + std::fabs(before)) + 0x1p-10 * w_largest * x_largest + 1e-37;
            const double share = std::fabs(y[at] - (sum + before)) / bound;
            result = std::max(result, std::isnan(share) ? std::numeric_limits<double>::infinity() : share);
        }
    }
    return result;
}

std::vector<float> product(Linear& linear, const Uploaded& w, const std::vector<float>& x, int n,
                           const std::vector<float>& bias = {}, const std::vector<float>& start = {}) {
    DeviceArray<float> dx(x), db(bias);
    std::vector<float> y(static_cast<size_t>(n * w.view.n_out), NAN);
    DeviceArray<float> dy(start.empty() ? y : start);
    const LinearOut out{w.view, bias.empty() ? nullptr : db.data(), dy.data(), !start.empty()};
    linear.op.run(&out, 1, dx.data(), n, nullptr);
    return dy.host();
}

void check_product(DType type, int64_t n_out, int64_t n_in, int n, int64_t n_unpacked, uint32_t seed) {
    const RandomWeights random(type, n_out, n_in, seed);
    const Uploaded w(random.view());
    const std::vector<float> x = test::random_floats(n * n_in, seed + 1);
    Linear linear(n, n_in, n_unpacked);
    const double share = worst(product(linear, w, x, n), w, x, n, {}, {});
    check::report(share <= 1, __FILE__, __LINE__,
                  std::string(dtype_traits(type).name) + " n_out=" + std::to_string(n_out) +
                      " n_in=" + std::to_string(n_in) + " n=" + std::to_string(n) + ": " + std::to_string(share) +
                      " of what rounding allows");
}

// x whose rows ask for every kind of scale.
std::vector<float> rows_of_all_sizes(int n, int64_t n_in, uint32_t seed) {
    std::vector<float> x = test::random_floats(n * n_in, seed);
    const float size[] = {1, 1e6f, 1e-4f, 0, 1e30f, 1e-18f, 3e4f, 2e-3f};
    for (size_t k = 0; k < x.size(); ++k) x[k] *= size[k / static_cast<size_t>(n_in) % std::size(size)];
    return x;
}

}  // namespace

TEST(cuda_prefill_products_of_every_type) {
    for (const DType type : test::ALL_DTYPES) {
        const int block = dtype_traits(type).block_values;
        const int64_t unit = block == 1 ? 37 : block;
        uint32_t seed = 1;
        check_product(type, 35, unit, 10, 1 << 16, seed += 2);
        check_product(type, 64, 3 * unit, 17, 1 << 16, seed += 2);
        check_product(type, 1, 2 * unit, 70, 1 << 16, seed += 2);
    }
}

TEST(cuda_prefill_products_of_matrices_larger_than_the_room_for_them) {
    for (const DType type : {FASA_DTYPE_F32, FASA_DTYPE_F16, FASA_DTYPE_Q8_0, FASA_DTYPE_Q4_K}) {
        check_product(type, 1029, 256, 11, 300 * 256, 1);  // 256 rows at a time
        check_product(type, 70, 256, 11, 7 * 256, 2);      // 4
        check_product(type, 5, 512, 11, 1, 3);             // 1
    }
}

TEST(cuda_prefill_adds_bias_and_keeps_what_is_there_at_any_scale) {
    constexpr int n = 19;
    constexpr int64_t n_in = 256;
    const std::vector<float> x = rows_of_all_sizes(n, n_in, 1);
    for (const int64_t n_out : {40, 33}) {
        const RandomWeights random(FASA_DTYPE_Q6_K, n_out, n_in, 2);
        const Uploaded w(random.view());
        const std::vector<float> bias = test::random_floats(n_out, 3), start = test::random_floats(n * n_out, 4);
        Linear linear(n, n_in, 1 << 16);
        CHECK(worst(product(linear, w, x, n), w, x, n, {}, {}) <= 1);
        CHECK(worst(product(linear, w, x, n, bias), w, x, n, bias, {}) <= 1);
        CHECK(worst(product(linear, w, x, n, {}, start), w, x, n, {}, start) <= 1);
        CHECK(worst(product(linear, w, x, n, bias, start), w, x, n, bias, start) <= 1);
    }
}

TEST(cuda_prefill_runs_products_that_share_their_input) {
    constexpr int n = 12;
    constexpr int64_t n_in = 512;
    const RandomWeights rq(FASA_DTYPE_Q4_K, 48, n_in, 1), rk(FASA_DTYPE_F16, 17, n_in, 2),
        rv(FASA_DTYPE_BF16, 20, n_in, 3);
    const Uploaded q(rq.view()), k(rk.view()), v(rv.view());
    const std::vector<float> x = rows_of_all_sizes(n, n_in, 4), bias = test::random_floats(48, 5);
    const std::vector<float> start = test::random_floats(n * 20, 6);
    DeviceArray<float> dx(x), db(bias), yq(size_t{n} * 48), yk(size_t{n} * 17), yv(start);
    const LinearOut out[] = {
        {q.view, db.data(), yq.data(), false}, {k.view, nullptr, yk.data(), false}, {v.view, nullptr, yv.data(), true}};
    Linear linear(n, n_in, 1 << 16);
    linear.op.run(out, 3, dx.data(), n, nullptr);
    CHECK(worst(yq.host(), q, x, n, bias, {}) <= 1);
    CHECK(worst(yk.host(), k, x, n, {}, {}) <= 1);
    CHECK(worst(yv.host(), v, x, n, {}, start) <= 1);
}

TEST(cuda_prefill_rows_do_not_depend_on_the_others) {
    struct Shape {
        DType type;
        int64_t n_out, n_in;
        std::vector<size_t> parts;
    };
    for (const Shape& s : {Shape{FASA_DTYPE_Q4_K, 48, 512, {10, 11, 49}}, Shape{FASA_DTYPE_F16, 33, 512, {31, 39}},
                           Shape{FASA_DTYPE_F32, 33, 100, {10, 60}}, Shape{FASA_DTYPE_Q8_0, 80, 2048, {10, 33, 257}}}) {
        const int n = static_cast<int>(std::accumulate(s.parts.begin(), s.parts.end(), size_t{0}));
        const RandomWeights random(s.type, s.n_out, s.n_in, 1);
        const Uploaded w(random.view());
        const std::vector<float> x = rows_of_all_sizes(n, s.n_in, 2), start = test::random_floats(n * s.n_out, 3);
        Linear linear(n, s.n_in, 1 << 18);
        const std::vector<float> whole = product(linear, w, x, n, {}, start);
        std::vector<float> parts;
        size_t first = 0;
        for (const size_t n_part : s.parts) {
            const auto slice = [&](const std::vector<float>& all, int64_t width) {
                const auto begin = all.begin() + static_cast<int64_t>(first) * width;
                return std::vector<float>(begin, begin + static_cast<int64_t>(n_part) * width);
            };
            const std::vector<float> y =
                product(linear, w, slice(x, s.n_in), static_cast<int>(n_part), {}, slice(start, s.n_out));
            parts.insert(parts.end(), y.begin(), y.end());
            first += n_part;
        }
        CHECK(std::memcmp(parts.data(), whole.data(), whole.size() * sizeof(float)) == 0);
    }
}

TEST(cuda_prefill_takes_weights_of_any_size) {
    constexpr int n = 10;
    constexpr int64_t n_in = 100, n_out = 9;
    const std::vector<float> x = test::random_floats(n * n_in, 1);
    for (const float size : {1e-30f, 1e-6f, 1e6f, 1e30f}) {
        std::vector<float> values = test::random_floats(n_out * n_in, 2);
        std::vector<uint16_t> tops;
        for (float& value : values) tops.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(value *= size) >> 16));
        const Uploaded f32(WeightView{FASA_DTYPE_F32, values.data(), n_in, n_out, n_in * 4});
        const Uploaded bf16(WeightView{FASA_DTYPE_BF16, tops.data(), n_in, n_out, n_in * 2});
        Linear linear(n, n_in, 1 << 16);
        linear.op.add(f32.view, nullptr);
        CHECK(worst(product(linear, f32, x, n), f32, x, n, {}, {}) <= 1);
        CHECK(worst(product(linear, bf16, x, n), bf16, x, n, {}, {}) <= 1);
    }
}

TEST(cuda_prefill_is_as_close_as_half_precision_activations) {
    constexpr int n = 16;
    constexpr int64_t n_in = 512, n_out = 64;
    for (const DType type : {FASA_DTYPE_F32, FASA_DTYPE_F16, FASA_DTYPE_BF16}) {
        const RandomWeights random(type, n_out, n_in, 1);
        const Uploaded w(random.view());
        const std::vector<float> x = test::random_floats(n * n_in, 2);
        Linear linear(n, n_in, 1 << 16);
        const std::vector<float> y = product(linear, w, x, n);
        double error = 0, total = 0;
        for (size_t i = 0; i < n; ++i) {
            for (size_t r = 0; r < n_out; ++r) {
                double exact = 0;
                for (size_t k = 0; k < n_in; ++k) exact += double{w.values[r * n_in + k]} * x[i * n_in + k];
                error += (y[i * n_out + r] - exact) * (y[i * n_out + r] - exact);
                total += exact * exact;
            }
        }
        CHECK(std::sqrt(error / total) < 3.5e-4);
    }
}

TEST(cuda_prefill_keeps_nan_to_its_row) {
    constexpr int n = 12;
    for (const DType type : {FASA_DTYPE_F32, FASA_DTYPE_Q8_0, FASA_DTYPE_Q4_K}) {
        const RandomWeights random(type, 20, 512, 3);
        const Uploaded w(random.view());
        std::vector<float> x = test::random_floats(n * 512, 4);
        x[512 + 300] = std::numeric_limits<float>::quiet_NaN();
        Linear linear(n, 512, 1 << 16);
        const std::vector<float> y = product(linear, w, x, n);
        for (size_t i = 0; i < y.size(); ++i) CHECK(std::isnan(y[i]) == (i / 20 == 1));
    }
}

TEST(cuda_prefill_refuses_more_than_was_planned_for) {
    const RandomWeights random(FASA_DTYPE_Q8_0, 4, 64, 1);
    const Uploaded w(random.view());
    Linear linear(10, 32, 1 << 10), few(9, 64, 1 << 10);
    DeviceArray<float> x(640), y(40);
    const LinearOut out{w.view, nullptr, y.data(), false};
    CHECK_THROWS(linear.op.run(&out, 1, x.data(), 10, nullptr), FASA_ERROR_ARGUMENT, "64 values");
    CHECK_THROWS(few.op.run(&out, 1, x.data(), 10, nullptr), FASA_ERROR_ARGUMENT, "10 rows");
}
