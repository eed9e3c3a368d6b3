// Norm, rotation and append of the CUDA backend against the CPU's scalar reference.
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "backend/cpu/elementwise_kernels.h"
#include "backend/cuda/position.h"
#include "base/half.h"
#include "check.h"
#include "device_array.h"
#include "random_weights.h"

using namespace fasa;
using fasa::test::DeviceArray;

namespace {

struct Shape {
    RopeLayout layout;
    int n_head, n_head_kv, head_dim, n_rot, n_dom;
    bool order, norm;
    int n;
    int32_t pos0;
    DomType type = DomType::f16;  // other than f16: n_dom dims are coded

    int n_apart() const { return type == DomType::f16 ? n_dom : 0; }
};

constexpr int32_t n_seq = 2, seq = 1, n_ctx = 90;
constexpr uint16_t untouched = 0x5a5a;

struct Case {
    Shape s;
    std::vector<float> q, k, v, norm_q, norm_k;
    std::vector<double> frequency;
    std::vector<int16_t> order;
    double magnitude = 1.1;
    float eps = 1e-5f;

    explicit Case(const Shape& shape) : s(shape) {
        q = test::random_floats(int64_t{s.n} * s.n_head * s.head_dim, 1);
        k = test::random_floats(int64_t{s.n} * s.n_head_kv * s.head_dim, 2);
        v = test::random_floats(int64_t{s.n} * s.n_head_kv * s.head_dim, 3);
        if (s.norm) {
            norm_q = test::random_floats(s.head_dim, 4);
            norm_k = test::random_floats(s.head_dim, 5);
        }
        for (int i = 0; i < s.n_rot / 2; ++i) frequency.push_back(std::pow(10000.0, -2.0 * i / s.n_rot));
        std::mt19937 rng(6);
        for (int h = 0; s.order && h < s.n_head_kv; ++h) {
            std::vector<int16_t> dims(static_cast<size_t>(s.head_dim));
            std::iota(dims.begin(), dims.end(), int16_t{0});
            std::shuffle(dims.begin(), dims.end(), rng);
            order.insert(order.end(), dims.begin(), dims.end());
        }
    }

    KvView view(uint16_t* dom, uint16_t* rest, const int16_t* dims) const {
        return {dom, rest, s.order ? dims : nullptr, n_ctx, s.n_head_kv, s.head_dim, s.n_apart()};
    }
    size_t n_rows() const { return size_t{n_seq} * s.n_head_kv * n_ctx; }
    size_t n_dom_values() const { return n_rows() * s.n_apart(); }
    size_t n_rest_values() const { return n_rows() * (2 * s.head_dim - s.n_apart()); }
    size_t n_code_bytes() const { return n_rows() * static_cast<size_t>(code_bytes(s.type, s.n_dom)); }

    // A head as it is cached, or as q is left.
    std::vector<float> placed(const float* x, const std::vector<float>& norm, int row, const int16_t* dims) const {
        const auto& kernels = cpu::scalar::elementwise;
        std::vector<float> head(x, x + s.head_dim), cos, sin;
        if (s.norm) kernels.rms_norm(head.data(), head.data(), norm.data(), s.head_dim, eps);
        for (const double f : frequency) {
            cos.push_back(static_cast<float>(std::cos(f * (s.pos0 + row)) * magnitude));
            sin.push_back(static_cast<float>(std::sin(f * (s.pos0 + row)) * magnitude));
        }
        kernels.rotate(head.data(), s.layout, s.n_rot, cos.data(), sin.data());
        const std::vector<float> rotated = head;
        for (int d = 0; dims && d < s.head_dim; ++d) head[d] = rotated[dims[d]];
        return head;
    }
};

struct Cache {
    std::vector<uint16_t> dom, rest, scale;
    std::vector<uint8_t> code;
};

// Sums of squares are in another order, and a product and a sum may be one rounding: a few units in the last place of
// the head's largest values.
bool near(float x, float expected) {
    return std::isnan(expected) ? std::isnan(x) : std::fabs(x - expected) <= 2e-6f * (1 + std::fabs(expected));
}

// The same, where rounding to half may then go either way.
bool near_half(uint16_t x, uint16_t expected) {
    const float a = half_to_float(x), b = half_to_float(expected);
    if (std::isnan(b)) return std::isnan(a);
    return a == b || std::fabs(a - b) <= 0x1p-10f * std::fabs(b) + 4e-6f;
}

void run(const Case& c, std::vector<float>& q, Cache& cache, std::vector<uint16_t>* rows_apart = nullptr) {
    DeviceArray<float> dq(c.q), dk(c.k), dv(c.v), norm_q(c.norm_q), norm_k(c.norm_k);
    DeviceArray<double> frequency(c.frequency);
    DeviceArray<int16_t> order(c.order);
    DeviceArray<uint16_t> dom(std::vector<uint16_t>(c.n_dom_values(), untouched));
    DeviceArray<uint16_t> rest(std::vector<uint16_t>(c.n_rest_values(), untouched));
    DeviceArray<uint16_t> scale(std::vector<uint16_t>(c.n_rows(), untouched));
    DeviceArray<uint8_t> code(std::vector<uint8_t>(c.n_code_bytes(), 0x5a));
    DeviceArray<cuda::Step> step(std::vector<cuda::Step>{{seq, c.s.pos0}});
    const RopeView rope{c.s.layout, c.s.n_rot, frequency.data(), c.magnitude};
    KvView kv = c.view(dom.data(), rest.data(), order.data());
    if (c.s.type != DomType::f16) kv.codes = {c.s.type, c.s.n_dom, code.data(), scale.data()};
    HeadNorm norm;
    if (c.s.norm) norm = {norm_q.data(), norm_k.data(), c.eps};
    DeviceArray<uint16_t> apart(rows_apart ? *rows_apart : std::vector<uint16_t>{});
    cuda::rope_store(dq.data(), dk.data(), dv.data(), c.s.n_head, rope, norm, kv, step.data(), c.s.n, nullptr,
                     rows_apart ? apart.data() : nullptr);
    if (rows_apart) *rows_apart = apart.host();
    q = dq.host();
    cache = {dom.host(), rest.host(), scale.host(), code.host()};
}

// The rows of a batch, put elsewhere than in the cache, are those that the cache would get.
void check_rows_apart(const Case& c) {
    const size_t row_values = static_cast<size_t>(2 * c.s.head_dim - c.s.n_apart());
    const auto n_rows = static_cast<size_t>(c.s.n * c.s.n_head_kv);
    std::vector<float> q, q_apart;
    Cache cache, untouched_cache;
    run(c, q, cache);
    std::vector<uint16_t> rows(n_rows * row_values, untouched);
    run(c, q_apart, untouched_cache, &rows);
    const KvView kv = c.view(cache.dom.data(), cache.rest.data(), nullptr);
    bool same = q == q_apart && cache.dom == untouched_cache.dom && cache.scale == untouched_cache.scale &&
                cache.code == untouched_cache.code;
    for (int h = 0; h < c.s.n_head_kv; ++h) {
        const auto* first = &rows[static_cast<size_t>(h * c.s.n) * row_values];
        same &= std::equal(first, first + static_cast<size_t>(c.s.n) * row_values, kv.rest_at(seq, h, c.s.pos0));
    }
    CHECK(same);
    CHECK(untouched_cache.rest == std::vector<uint16_t>(c.n_rest_values(), untouched));
}

void check_case(const Case& c) {
    const Shape& s = c.s;
    std::vector<float> q;
    Cache cache;
    run(c, q, cache);

    Cache expected{std::vector<uint16_t>(c.n_dom_values(), untouched),
                   std::vector<uint16_t>(c.n_rest_values(), untouched), std::vector<uint16_t>(c.n_rows(), untouched),
                   std::vector<uint8_t>(c.n_code_bytes(), 0x5a)};
    const KvView kv = c.view(expected.dom.data(), expected.rest.data(), c.order.data());
    const size_t head_dim = static_cast<size_t>(s.head_dim);
    bool queries = true;
    for (int i = 0; i < s.n; ++i) {
        for (int h = 0; h < s.n_head; ++h) {
            const size_t at = static_cast<size_t>(i * s.n_head + h) * head_dim;
            const auto head = c.placed(&c.q[at], c.norm_q, i, kv.order_of(h / (s.n_head / s.n_head_kv)));
            for (size_t d = 0; d < head_dim; ++d) queries &= near(q[at + d], head[d]);
        }
        for (int h = 0; h < s.n_head_kv; ++h) {
            const size_t at = static_cast<size_t>(i * s.n_head_kv + h) * head_dim;
            const auto head = c.placed(&c.k[at], c.norm_k, i, kv.order_of(h));
            uint16_t* rest = kv.rest_at(seq, h, s.pos0 + i);
            const int n_apart = s.n_apart();
            cpu::scalar::elementwise.to_half(kv.dom_at(seq, h, s.pos0 + i), head.data(), n_apart);
            cpu::scalar::elementwise.to_half(rest, head.data() + n_apart, s.head_dim - n_apart);
            cpu::scalar::elementwise.to_half(rest + s.head_dim - n_apart, &c.v[at], s.head_dim);
            if (s.type == DomType::f16) continue;
            // Of the key as the kernel stored it: codes follow from it bit for bit.
            const int64_t row = kv.row(seq, h, s.pos0 + i);
            const KeyCodes codes = KeyCodes{s.type, s.n_dom, expected.code.data(), expected.scale.data()}.at(row);
            const uint16_t* key = cache.rest.data() + row * 2 * s.head_dim;
            cpu::scalar::elementwise.encode(codes.code, codes.scale, key, s.type, s.n_dom);
        }
    }
    bool keys = true;
    for (size_t i = 0; i < cache.dom.size(); ++i) keys &= near_half(cache.dom[i], expected.dom[i]);
    for (size_t i = 0; i < cache.rest.size(); ++i) keys &= near_half(cache.rest[i], expected.rest[i]);
    keys &= cache.scale == expected.scale && cache.code == expected.code;
    const std::string what = " head_dim=" + std::to_string(s.head_dim) + " n_rot=" + std::to_string(s.n_rot) +
                             " n_dom=" + std::to_string(s.n_dom) + " n=" + std::to_string(s.n);
    check::report(queries, __FILE__, __LINE__, "queries differ:" + what);
    check::report(keys, __FILE__, __LINE__, "the cache differs:" + what);
}

}  // namespace

TEST(cuda_rope_store_does_what_the_scalar_reference_does) {
    using enum RopeLayout;
    for (const Shape& shape : {
             Shape{interleaved, 4, 2, 64, 64, 0, false, false, 1, 0},
             Shape{interleaved, 8, 2, 128, 128, 32, true, false, 3, 17},
             Shape{half_split, 6, 2, 128, 128, 32, true, true, 2, 40},
             Shape{half_split, 3, 1, 80, 64, 12, true, false, 5, 9},     // some dims are not rotated
             Shape{interleaved, 3, 3, 96, 32, 0, false, true, 7, 83},    // the last rows of the cache
             Shape{half_split, 2, 1, 5, 2, 3, true, true, 2, 1},         // odd everything
             Shape{half_split, 2, 2, 256, 256, 256, true, false, 1, 2},  // the whole key is dominant
             Shape{interleaved, 2, 1, 1024, 1024, 0, false, true, 1, 3},
             Shape{half_split, 5, 5, 64, 64, 16, true, true, 70, 11},  // one block a row
         }) {
        check_case(Case(shape));
    }
}

TEST(cuda_rope_store_writes_the_codes_of_the_stored_key) {
    using enum RopeLayout;
    for (const DomType type : {DomType::int8, DomType::q4}) {
        for (const Shape& shape : {
                 Shape{interleaved, 8, 2, 128, 128, 32, true, false, 3, 17, type},
                 Shape{half_split, 6, 2, 128, 128, 32, true, true, 2, 40, type},
                 Shape{half_split, 3, 1, 80, 64, 12, true, false, 5, 9, type},
                 Shape{interleaved, 2, 2, 20, 8, 6, false, true, 7, 83, type},
                 Shape{half_split, 2, 1, 5, 2, 2, true, true, 2, 1, type},  // rows of an odd head_dim
                 Shape{half_split, 2, 2, 256, 256, 256, true, false, 1, 2, type},
                 Shape{half_split, 5, 5, 64, 64, 16, true, true, 70, 11, type},
             }) {
            check_case(Case(shape));
        }
        Case c({interleaved, 2, 1, 64, 64, 8, true, false, 2, 5, type});
        const size_t coded = static_cast<size_t>(c.order[3]) & ~size_t{1};  // of the pair that dim 3 of the cache is in
        c.k[64 + coded] = std::numeric_limits<float>::quiet_NaN();
        check_case(c);
        c.k[64 + coded] = 1e9f;  // infinite in half precision
        check_case(c);
        std::fill(c.k.begin(), c.k.end(), 0.0f);
        check_case(c);
    }
}

TEST(cuda_rope_store_puts_rows_apart) {
    using enum RopeLayout;
    check_rows_apart(Case({interleaved, 4, 2, 64, 64, 16, true, false, 9, 17}));
    check_rows_apart(Case({half_split, 6, 3, 20, 14, 6, true, true, 70, 11}));
    check_rows_apart(Case({half_split, 6, 3, 20, 14, 6, true, true, 70, 11, DomType::q4}));
}

TEST(cuda_angles_are_exact_at_a_million_positions) {
    constexpr int32_t pos0 = 1'000'003;
    Case c({RopeLayout::half_split, 2, 1, 8, 8, 0, false, false, 1, pos0});
    DeviceArray<float> q(c.q), k(c.k), v(c.v);
    DeviceArray<double> frequency(c.frequency);
    DeviceArray<uint16_t> rest(std::vector<uint16_t>(size_t{16} * (pos0 + 1)));
    DeviceArray<cuda::Step> step(std::vector<cuda::Step>{{0, pos0}});
    KvView kv{nullptr, rest.data(), nullptr, pos0 + 1, 1, 8, 0};
    cuda::rope_store(q.data(), k.data(), v.data(), 2, {c.s.layout, 8, frequency.data(), c.magnitude}, {}, kv,
                     step.data(), 1, nullptr);
    const std::vector<float> result = q.host();
    bool same = true;
    for (size_t h = 0; h < 2; ++h) {
        const auto head = c.placed(&c.q[h * 8], {}, 0, nullptr);
        for (size_t d = 0; d < 8; ++d) same &= near(result[h * 8 + d], head[d]);
    }
    CHECK(same);
}

TEST(cuda_rope_store_keeps_nan_and_infinity) {
    Case c({RopeLayout::interleaved, 2, 1, 64, 64, 8, true, false, 2, 5});
    c.q[3] = std::numeric_limits<float>::quiet_NaN();
    c.k[70] = std::numeric_limits<float>::quiet_NaN();
    c.v[9] = std::numeric_limits<float>::infinity();
    c.v[10] = 1e6f;  // above half's range
    check_case(c);
    c = Case({RopeLayout::half_split, 2, 1, 64, 64, 0, false, true, 2, 5});
    c.q[3] = std::numeric_limits<float>::quiet_NaN();
    check_case(c);
}
