// Weights on the device are the file's: rows of every type read back through `embed` against the CPU's dequantisation.
#include <cmath>
#include <cstring>

#include "backend/cpu/quant.h"
#include "check.h"
#include "device_weights.h"
#include "random_weights.h"

using namespace fasa;
using fasa::test::DeviceArray;
using fasa::test::DeviceWeights;
using fasa::test::RandomWeights;

namespace {

// The largest difference from the CPU's values in units of the row's largest one, where a product and a difference are
// rounded; they may be fused on the GPU.
double worst(const WeightView& w, const std::vector<int32_t>& tokens, const std::vector<float>& x) {
    const size_t n_in = static_cast<size_t>(w.n_in);
    std::vector<float> expected(n_in);
    double result = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
        const size_t row = static_cast<size_t>(tokens[i]);
        cpu::dequantize_row(w.dtype, static_cast<const uint8_t*>(w.data) + row * w.row_bytes, expected.data(), w.n_in);
        double largest = 0;
        for (const float value : expected) largest = std::max(largest, std::fabs(double{value}));
        for (size_t k = 0; k < n_in; ++k) {
            const double share = std::fabs(double{x[i * n_in + k]} - expected[k]) / largest;
            result = std::max(result, std::isnan(share) ? INFINITY : share);
        }
    }
    return result;
}

void check_rows(DType type, int64_t n_in, size_t staging_bytes) {
    constexpr int64_t n_out = 37;
    const RandomWeights w(type, n_out, n_in, 1);
    const DeviceWeights on_device(w.view(), staging_bytes);
    CHECK(on_device.n_uploaded() == w.view().n_bytes());
    CHECK(on_device.view().row_bytes % 16 == 0 && on_device.view().row_bytes < w.view().row_bytes + 16);

    const std::vector<int32_t> tokens = {36, 0, 17, 17, 5};
    const DeviceArray<int32_t> token(tokens);
    const DeviceArray<float> x(tokens.size() * static_cast<size_t>(n_in));
    cuda::embed(x.data(), on_device.view(), token.data(), static_cast<int>(tokens.size()), nullptr);
    const double share = worst(w.view(), tokens, x.host());
    const double allowed = dtype_traits(type).block_values == 1 ? 0 : 1e-6;
    check::report(
        share <= allowed, __FILE__, __LINE__,
        std::string(dtype_traits(type).name) + " n_in=" + std::to_string(n_in) + ": " + std::to_string(share));
}

}  // namespace

TEST(rows_of_every_type_come_back) {
    for (const DType type : test::ALL_DTYPES) {
        const int block = dtype_traits(type).block_values;
        for (const int64_t n_blocks : {1, 3, 4, 9}) {
            const int64_t n_in = block == 1 ? n_blocks * 37 - 4 : n_blocks * block;
            check_rows(type, n_in, 1 << 20);  // at once
            check_rows(type, n_in, 1000);     // in pieces that end within rows
        }
        check_rows(type, 2048, 1 << 14);
    }
}

TEST(uploading_an_unknown_type_is_refused) {
    WeightView w{static_cast<DType>(31), &w, 32, 1, 32};
    CHECK_THROWS(cuda::upload(nullptr, w, {nullptr, nullptr, 1024}, nullptr, nullptr), FASA_ERROR_UNSUPPORTED, "31");
}
