// Norms, gates and int8 activations of the CUDA backend against the CPU's scalar reference.
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/elementwise_kernels.h"
#include "backend/cpu/linear_kernels.h"
#include "backend/cuda/quantize.h"
#include "check.h"
#include "device_array.h"
#include "random_weights.h"

using namespace fasa;
using fasa::test::DeviceArray;

namespace {

constexpr float NaN = std::numeric_limits<float>::quiet_NaN(), INF = std::numeric_limits<float>::infinity();

struct DeviceQuantized {
    DeviceArray<int8_t> q;
    DeviceArray<float> d;

    explicit DeviceQuantized(size_t n) : q(n), d(n / 32) {}
    cuda::Quantized view() const { return {q.data(), d.data()}; }
};

// Whether the device's int8 form has the bits that the CPU gives for x; any NaN will do for d.
bool as_on_cpu(const std::vector<float>& x, const DeviceQuantized& quantized) {
    std::vector<int8_t> q(x.size());
    std::vector<float> d(x.size() / 32), s32(d.size()), s16(2 * d.size());
    cpu::scalar::linear_kernels().quantize(x.data(), static_cast<int64_t>(x.size()), 1,
                                           {q.data(), d.data(), s32.data(), s16.data()});
    const std::vector<float> found = quantized.d.host();
    bool same = quantized.q.host() == q;
    for (size_t i = 0; i < d.size(); ++i) same &= d[i] == found[i] || (std::isnan(d[i]) && std::isnan(found[i]));
    return same;
}

bool near(const std::vector<float>& found, const std::vector<float>& expected, float tolerance) {
    for (size_t i = 0; i < found.size(); ++i) {
        if (found[i] == expected[i] || (std::isnan(expected[i]) && std::isnan(found[i]))) continue;
        if (!(std::fabs(found[i] - expected[i]) <= tolerance * std::fabs(expected[i]))) return false;
    }
    return found.size() == expected.size();
}

}  // namespace

TEST(activations_have_the_bits_of_the_cpu) {
    std::vector<float> x = test::random_floats(4096 + 32, 7);
    x[40] = 1e30f;
    x[70] = NaN;
    x[100] = -INF;
    for (size_t k = 128; k < 160; ++k) x[k] = 0;
    for (size_t k = 160; k < 192; ++k) x[k] *= 1e-44f;
    for (size_t k = 192; k < 224; ++k) x[k] = 0.5f * static_cast<float>(k % 5);  // ties
    const DeviceArray<float> in(x);
    const DeviceQuantized out(x.size());
    cuda::quantize(out.view(), in.data(), static_cast<int64_t>(x.size()), nullptr);
    CHECK(as_on_cpu(x, out));
    CHECK_THROWS(cuda::quantize(out.view(), in.data(), 40, nullptr), FASA_ERROR_ARGUMENT, "32");
}

TEST(norm_of_rows_in_both_forms) {
    for (const int dim : {1, 3, 32, 37, 64, 96, 130, 1056, 4096, 5120}) {
        for (const int64_t n_rows : {1, 3}) {
            std::vector<float> x = test::random_floats(n_rows * dim, 1);
            const std::vector<float> weight = test::random_floats(dim, 2);
            if (n_rows == 3) x[static_cast<size_t>(2 * dim)] = NaN;
            std::vector<float> expected = x;
            for (int64_t i = 0; i < n_rows; ++i) {
                float* row = expected.data() + i * dim;
                cpu::scalar::elementwise.rms_norm(row, row, weight.data(), dim, 1e-5f);
            }
            const DeviceArray<float> in(x), w(weight), y(x.size());
            cuda::rms_norm(y.data(), {}, in.data(), w.data(), n_rows, dim, 1e-5f, nullptr);
            CHECK(near(y.host(), expected, 1e-6f));  // sums in float: up to 5 values a thread, then a tree
            if (dim % 32 == 0) {
                const DeviceQuantized only(x.size()), both(x.size());
                cuda::rms_norm(nullptr, only.view(), in.data(), w.data(), n_rows, dim, 1e-5f, nullptr);
                CHECK(as_on_cpu(y.host(), only));
                cuda::rms_norm(in.data(), both.view(), in.data(), w.data(), n_rows, dim, 1e-5f, nullptr);
                CHECK(as_on_cpu(y.host(), both));
                CHECK(near(in.host(), y.host(), 0));  // in place
            }
        }
    }
}

TEST(gates_in_both_forms) {
    for (const int64_t n : {1, 7, 32, 100, 1056, 4096}) {
        std::vector<float> gate = test::random_floats(n, 3);
        const std::vector<float> up = test::random_floats(n, 4);
        for (float& value : gate) value *= 30;
        if (n > 64) gate[40] = NaN, gate[41] = -INF, gate[3] = INF, gate[4] = -200;
        std::vector<float> expected = gate;
        cpu::scalar::elementwise.silu_mul(expected.data(), up.data(), n);
        const DeviceArray<float> g(gate), u(up), y(gate.size());
        cuda::glu(y.data(), {}, g.data(), u.data(), n, nullptr);
        CHECK(near(y.host(), expected, 1e-6f));
        if (n % 32 == 0) {
            const DeviceQuantized only(gate.size());
            cuda::glu(nullptr, only.view(), g.data(), u.data(), n, nullptr);
            CHECK(as_on_cpu(y.host(), only));
        }
        cuda::glu(g.data(), {}, g.data(), u.data(), n, nullptr);
        CHECK(near(g.host(), y.host(), 0));
    }
}
