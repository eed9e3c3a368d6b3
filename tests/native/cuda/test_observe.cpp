// Observation of attention and keys by the CUDA backend against the CPU's, over odd shapes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "backend/cpu/observe.h"
#include "backend/cuda/observe.h"
#include "base/half.h"
#include "check.h"
#include "device_array.h"
#include "random_weights.h"

using namespace fasa;
using fasa::test::DeviceArray;
using fasa::test::random_floats;

namespace {

constexpr int32_t n_seq = 2, seq = 1, n_batch = 48;
constexpr float scale = 0.35f;

struct Shape {
    int32_t head_dim, n_dom, n_head, n_head_kv, n_ctx;
};

// A cache of random keys on both sides, and the ops of both.
struct Lab {
    explicit Lab(const Shape& shape)
        : s(shape),
          dom(halves(s.n_dom, 1)),
          rest(halves(2 * s.head_dim - s.n_dom, 2)),
          device_dom(dom),
          device_rest(rest),
          team(1),
          limits{n_batch, 64, s.n_head, s.n_head_kv, s.head_dim, s.n_ctx},
          cpu(team, limits),
          memory(scratch_bytes()),
          step(1) {
        Arena arena(memory.data());
        scratch = cuda::ObserveScratch::take(arena, limits);
    }

    KvView view() { return {dom.data(), rest.data(), nullptr, s.n_ctx, s.n_head_kv, s.head_dim, s.n_dom}; }
    KvView device_view() {
        return {device_dom.data(), device_rest.data(), nullptr, s.n_ctx, s.n_head_kv, s.head_dim, s.n_dom};
    }
    cuda::Past past(int32_t n_pos, bool by_step) {
        if (!by_step) return {nullptr, seq, n_pos, n_pos};
        step.set({{seq, n_pos - 1}});
        return {step.data(), 0, -1, s.n_ctx};
    }
    void set_key(int32_t head_kv, int32_t pos, int32_t d, uint16_t bits) {
        const KvView kv = view();
        const int64_t row = (int64_t{seq} * s.n_head_kv + head_kv) * s.n_ctx + pos;
        (d < s.n_dom ? dom[row * s.n_dom + d] : rest[row * kv.row_values() + d - s.n_dom]) = bits;
        device_dom.set(dom);
        device_rest.set(rest);
    }

    Shape s;
    std::vector<uint16_t> dom, rest;
    DeviceArray<uint16_t> device_dom, device_rest;
    Team team;
    OpsLimits limits;
    cpu::Observation cpu;
    DeviceArray<uint8_t> memory;
    DeviceArray<cuda::Step> step;
    cuda::ObserveScratch scratch;

   private:
    std::vector<uint16_t> halves(int64_t width, unsigned seed) const {
        std::vector<uint16_t> bits;
        for (const float x : random_floats(n_seq * int64_t{s.n_head_kv} * s.n_ctx * width, seed)) {
            bits.push_back(float_to_half(x));
        }
        return bits;
    }
    size_t scratch_bytes() const {
        Arena measure;
        cuda::ObserveScratch::take(measure, limits);
        return measure.used();
    }
};

const Shape shapes[] = {
    {16, 0, 4, 2, 333}, {20, 6, 6, 2, 333}, {80, 10, 3, 1, 333}, {128, 32, 2, 2, 150}, {7, 2, 9, 1, 70}};

// The largest difference; NaN on one side only, or other infinities, count as 1e9.
double worst(const std::vector<float>& a, const std::vector<float>& b) {
    double difference = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
        const double d = std::fabs(double{a[i]} - b[i]);
        difference = std::max(difference, std::isfinite(d) ? d : 1e9);
    }
    return difference;
}

// Weights are below 1 and a handful of roundings off; a position's mass sums up to a few hundred of them.
constexpr double mass_tolerance = 2e-5;

void check_mass(Lab& lab, int32_t n_set, int32_t pos0, int32_t n, const std::vector<float>& q) {
    std::vector<float> expected(size_t{1} * n_set * lab.s.n_ctx, 1.0f);  // added to what is there
    DeviceArray<float> mass(expected), device_q(q);
    const Rows rows{seq, pos0, n};
    lab.cpu.attention_mass(expected.data(), n_set, q.data(), lab.s.n_head, scale, lab.view(), rows);
    cuda::attention_mass(mass.data(), n_set, device_q.data(), lab.s.n_head, scale, lab.device_view(), rows, lab.scratch,
                         nullptr);
    CHECK_NEAR(worst(mass.host(), expected), 0.0, mass_tolerance);
}

}  // namespace

TEST(cuda_attention_mass) {
    for (const Shape& shape : shapes) {
        Lab lab(shape);
        const int32_t n_ctx = shape.n_ctx;
        for (const auto& [pos0, n] : {std::pair{0, 1}, {0, 61}, {n_ctx - 33, 33}, {n_ctx - 1, 1}}) {
            const auto q = random_floats(int64_t{n} * shape.n_head * shape.head_dim, 3);
            check_mass(lab, shape.n_head_kv, pos0, n, q);
            check_mass(lab, shape.n_head, pos0, n, q);
        }
    }
    CHECK_THROWS(cuda::attention_mass(nullptr, 4, nullptr, 6, scale, {}, {}, {}, nullptr), FASA_ERROR_ARGUMENT, "6",
                 "4");
}

// Every position that a row with a NaN sees; on the CPU some that it does not see too.
TEST(cuda_attention_mass_of_what_is_not_a_number) {
    Lab lab(shapes[1]);
    auto q = random_floats(40 * 6 * 20, 3);
    const auto nan_below = [&](int32_t n_set, int32_t pos0, int32_t nan_set, int32_t n_nan) {
        DeviceArray<float> mass(std::vector<float>(size_t{1} * n_set * lab.s.n_ctx)), device_q(q);
        cuda::attention_mass(mass.data(), n_set, device_q.data(), 6, scale, lab.device_view(), {seq, pos0, 40},
                             lab.scratch, nullptr);
        const auto found = mass.host();
        for (int32_t i = 0; i < n_set * lab.s.n_ctx; ++i) {
            const int32_t pos = i % lab.s.n_ctx;
            CHECK(std::isnan(found[i]) == (i / lab.s.n_ctx == nan_set && pos < n_nan));
        }
    };
    q[(7 * 6 + 1) * 20 + 3] = NAN;  // row 7, head 1, in set 0 of 2
    nan_below(2, 200, 0, 208);
    nan_below(6, 200, 1, 208);
    q[(7 * 6 + 1) * 20 + 3] = 0;
    lab.set_key(1, 239, 7, 0x7e00);  // a key that only the last row sees
    nan_below(2, 200, 1, 240);
}

TEST(cuda_selected_mass) {
    for (const Shape& shape : shapes) {
        Lab lab(shape);
        const auto q = random_floats(int64_t{shape.n_head} * shape.head_dim, 3);
        DeviceArray<float> device_q(q);
        for (const int32_t n_set : {shape.n_head_kv, shape.n_head}) {
            const int32_t capacity = shape.n_ctx;
            std::vector<int32_t> positions(size_t{1} * n_set * capacity), count;
            for (int32_t set = 0; set < n_set; ++set) {
                count.push_back(0);
                for (int32_t pos = set; pos < shape.n_ctx; pos += 1 + 3 * set) {
                    positions[size_t{1} * set * capacity + count[set]++] = pos;
                }
            }
            std::vector<float> expected(size_t{1} * n_set * shape.n_ctx, 1.0f);
            DeviceArray<float> mass(expected);
            DeviceArray<int32_t> device_positions(positions), device_count(count);
            const Selection selection{positions.data(), count.data(), n_set, capacity};
            const Selection on_device{device_positions.data(), device_count.data(), n_set, capacity};
            lab.cpu.selected_mass(expected.data(), q.data(), shape.n_head, scale, lab.view(), seq, selection);
            cuda::selected_mass(mass.data(), device_q.data(), shape.n_head, scale, lab.device_view(),
                                lab.past(shape.n_ctx, n_set == shape.n_head), on_device, nullptr);
            CHECK_NEAR(worst(mass.host(), expected), 0.0, mass_tolerance);
        }
    }
}

TEST(cuda_page_bounds) {
    for (const Shape& shape : shapes) {
        Lab lab(shape);
        const int32_t n_pos = shape.n_ctx - 3;
        lab.set_key(0, 17, 1, 0x7e00);
        for (const int32_t page : {1, 16, 50}) {
            for (const PageBounds kind : {PageBounds::min_max, PageBounds::mean_std}) {
                const size_t n_values =
                    size_t{2} * shape.n_head_kv * ((shape.n_ctx + page - 1) / page) * shape.head_dim;
                std::vector<uint16_t> expected(n_values, 0x1234);
                DeviceArray<uint16_t> bounds(expected);
                const auto check_pages = [&](int32_t first_page, const cuda::Past& past, int32_t cpu_first) {
                    lab.cpu.page_bounds(expected.data(), lab.view(), seq, page, cpu_first, n_pos, kind);
                    cuda::page_bounds(bounds.data(), lab.device_view(), past, page, first_page, kind, nullptr);
                    const auto found = bounds.host();
                    bool same = true;
                    for (size_t i = 0; i < n_values; ++i) {
                        const float a = half_to_float(found[i]), b = half_to_float(expected[i]);
                        same &= found[i] == expected[i] || (std::isnan(a) && std::isnan(b));
                    }
                    CHECK(same);
                };
                check_pages(-1, lab.past(n_pos, true), (n_pos - 1) / page);
                check_pages(1, lab.past(n_pos, false), 1);
                check_pages(0, lab.past(n_pos, true), 0);
            }
        }
    }
}

TEST(cuda_key_similarity) {
    for (const Shape& shape : shapes) {
        Lab lab(shape);
        for (int32_t d = 0; d < shape.head_dim; ++d) lab.set_key(0, 9, d, 0);  // a key of zeros
        for (const int32_t n_pos : {1, 2, 64, 65, shape.n_ctx}) {
            std::vector<float> expected(size_t{1} * shape.n_head_kv * shape.n_ctx, 5.0f);
            DeviceArray<float> similarity(expected);
            lab.cpu.key_similarity(expected.data(), lab.view(), seq, n_pos);
            cuda::key_similarity(similarity.data(), lab.device_view(), lab.past(n_pos, n_pos == 65), lab.scratch,
                                 nullptr);
            CHECK_NEAR(worst(similarity.host(), expected), 0.0, 1e-5);  // means of cosines, summed in another order
        }
    }
}
