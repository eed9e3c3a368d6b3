// Coded copies of dominant keys: what is stored, how positions rank by it, and where it lies in the cache.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/elementwise_kernels.h"
#include "base/half.h"
#include "check.h"
#include "select_lab.h"

using namespace fasa;
using namespace fasa::cpu;

namespace {

constexpr DomType coded_types[] = {DomType::int8, DomType::q4};
constexpr int widths[] = {2, 6, 8, 10, 16, 20, 32, 34, 48, 64, 80, 128, 256};

std::vector<Isa> runnable() {
    std::vector<Isa> sets = {Isa::scalar};
#if FASA_X86
    if (cpu_info().isa != Isa::scalar) sets.push_back(Isa::avx2);
    if (cpu_info().isa == Isa::avx512) sets.push_back(Isa::avx512);
#endif
    return sets;
}

std::vector<uint16_t> random_halves(int64_t n, unsigned seed, float spread = 1.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, spread);
    std::vector<uint16_t> halves(static_cast<size_t>(n));
    for (uint16_t& h : halves) h = float_to_half(normal(random));
    return halves;
}

// One position, with bytes behind it that nothing may touch.
struct Coded {
    Coded(DomType type_, int n_) : type(type_), n(n_), code(static_cast<size_t>(code_bytes(type, n)) + 64, 0x5a) {}

    void encode(Isa isa, const uint16_t* key) { elementwise_kernels(isa).encode(code.data(), &scale, key, type, n); }
    int at(int d) const {
        return type == DomType::q4 ? (code[static_cast<size_t>(d / 2)] >> (d % 2 * 4) & 15) - 8
                                   : static_cast<int8_t>(code[static_cast<size_t>(d)]);
    }
    bool operator==(const Coded& other) const { return code == other.code && scale == other.scale; }

    DomType type;
    int n;
    std::vector<uint8_t> code;
    uint16_t scale = 0;
};

Coded encoded(DomType type, const std::vector<uint16_t>& key, Isa isa = Isa::scalar) {
    Coded c(type, static_cast<int>(key.size()));
    c.encode(isa, key.data());
    return c;
}

// A key of one KV head with n coded dims of head_dim, n_pos positions.
struct Plane {
    Plane(DomType type, int n, int n_pos)
        : code(static_cast<size_t>(n_pos * code_bytes(type, n))),
          scale(static_cast<size_t>(n_pos)),
          key(random_halves(int64_t{n_pos} * n, 3)),
          codes{type, n, code.data(), scale.data()} {
        for (int pos = 0; pos < n_pos; ++pos) {
            const KeyCodes row = codes.at(pos);
            elementwise_kernels(Isa::scalar).encode(row.code, row.scale, &key[static_cast<size_t>(pos) * n], type, n);
        }
    }
    double dim(int pos, int d) const {
        Coded row(codes.type, codes.n);
        std::copy_n(codes.at(pos).code, codes.row_bytes(), row.code.begin());
        return row.at(d) * double{half_to_float(scale[static_cast<size_t>(pos)])};
    }

    std::vector<uint8_t> code;
    std::vector<uint16_t> scale, key;
    KeyCodes codes;
};

}  // namespace

TEST(codes_are_within_half_a_step_of_the_key) {
    for (const DomType type : coded_types) {
        for (const int n : widths) {
            const auto key = random_halves(n, 1, 5.0f);
            const Coded c = encoded(type, key);
            double largest = 0;
            for (const uint16_t k : key) largest = std::max(largest, std::fabs(double{half_to_float(k)}));
            const double step = largest / largest_code(type);
            CHECK_NEAR(half_to_float(c.scale) / step, 1.0, 0x1p-11);
            int most = 0;
            for (int d = 0; d < n; ++d) {
                // The scale's own rounding moves the largest dims by up to 2^-11 of them.
                const double value = c.at(d) * double{half_to_float(c.scale)}, exact = half_to_float(key[d]);
                CHECK_NEAR(value, exact, 0.501 * step + largest * 0x1p-11);
                most = std::max(most, std::abs(c.at(d)));
            }
            CHECK(most == largest_code(type));
        }
    }
}

TEST(codes_lie_as_they_are_documented) {
    const std::vector<uint16_t> key = {float_to_half(7.0f), float_to_half(-7.0f), float_to_half(0.0f),
                                       float_to_half(1.0f), float_to_half(2.5f),  float_to_half(3.5f)};
    const Coded q4 = encoded(DomType::q4, key);
    CHECK(half_to_float(q4.scale) == 1.0f);
    CHECK(q4.code[0] == (15 | 1 << 4) && q4.code[1] == (8 | 9 << 4));
    CHECK(q4.code[2] == (10 | 12 << 4));  // ties go to even
    CHECK(q4.code[3] == 0x5a);            // three bytes are all
    const std::vector<uint16_t> bytes = {float_to_half(-127.0f), float_to_half(5.0f)};
    const Coded int8 = encoded(DomType::int8, bytes);
    CHECK(half_to_float(int8.scale) == 1.0f);
    CHECK(int8.code[0] == 0x81 && int8.code[1] == 5 && int8.code[2] == 0x5a);
}

TEST(codes_of_all_instruction_sets_are_the_same) {
    for (const Isa isa : runnable()) {
        for (const DomType type : coded_types) {
            for (const int n : widths) {
                for (const float spread : {1e-7f, 1e-3f, 1.0f, 1e4f}) {  // subnormal scales, and dims near half's end
                    for (unsigned seed = 0; seed < 8; ++seed) {
                        auto key = random_halves(n, seed, spread);
                        for (uint16_t& k : key) {
                            if ((k & 0x7fff) >= 0x7c00) k = 0x7bff;
                        }
                        CHECK(encoded(type, key, isa) == encoded(type, key));
                    }
                }
                CHECK(encoded(type, std::vector<uint16_t>(static_cast<size_t>(n)), isa) ==
                      encoded(type, std::vector<uint16_t>(static_cast<size_t>(n))));
            }
        }
    }
}

TEST(keys_that_are_not_finite_have_no_score) {
    for (const Isa isa : runnable()) {
        for (const DomType type : coded_types) {
            for (const uint16_t bad : {uint16_t{0x7e00}, uint16_t{0xfe01}, uint16_t{0x7c00}, uint16_t{0xfc00}}) {
                for (const size_t at : {size_t{0}, size_t{9}, size_t{33}}) {
                    auto key = random_halves(34, 2);
                    key[at] = bad;
                    const Coded c = encoded(type, key, isa);
                    CHECK(c.scale == 0x7e00);
                    for (int d = 0; d < 34; ++d) CHECK(c.at(d) == 0);
                }
            }
        }
    }
}

TEST(scores_of_codes) {
    for (const Isa isa : runnable()) {
        for (const DomType type : coded_types) {
            for (const int n : widths) {
                const int head_dim = n + 12, first = 5;
                std::vector<float> q(static_cast<size_t>(query_stride(0, head_dim)));
                for (int d = 0; d < head_dim; ++d) q[static_cast<size_t>(d)] = std::sin(static_cast<float>(d) + 1);
                for (const int n_pos : {1, 3, 4, 5, 16, 77}) {
                    const Plane plane(type, n, first + n_pos);
                    const std::vector<uint16_t> rest(static_cast<size_t>(2 * head_dim * (first + n_pos)), 0x7e00);
                    const KvHead kv{nullptr, rest.data(), 0, head_dim, plane.codes};
                    std::vector<float> scores(static_cast<size_t>(n_pos) + 1, NAN);
                    attention_kernels(isa).scores(q.data(), kv, first, n_pos, false, scores.data());
                    CHECK(std::isnan(scores.back()));
                    for (int j = 0; j < n_pos; ++j) {
                        double dot = 0, magnitude = 0;
                        for (int d = 0; d < n; ++d) {
                            const double term = double{q[static_cast<size_t>(d)]} * plane.dim(first + j, d);
                            dot += term;
                            magnitude += std::fabs(term);
                        }
                        CHECK_NEAR(scores[static_cast<size_t>(j)], dot, 1e-6 + magnitude * 2e-6);
                    }
                }
            }
        }
    }
}

TEST(whole_keys_are_scored_exactly_beside_codes) {
    const int head_dim = 20, n = 6, n_pos = 9;
    std::vector<float> q(static_cast<size_t>(query_stride(0, head_dim)));
    for (int d = 0; d < head_dim; ++d) q[static_cast<size_t>(d)] = 0.1f * static_cast<float>(d + 1);
    const auto rest = random_halves(2 * head_dim * n_pos, 4);
    for (const Isa isa : runnable()) {
        for (const DomType type : coded_types) {
            const Plane plane(type, n, n_pos);
            std::vector<float> with(n_pos), without(n_pos);
            const KvHead bare{nullptr, rest.data(), 0, head_dim}, coded{nullptr, rest.data(), 0, head_dim, plane.codes};
            attention_kernels(isa).scores(q.data(), coded, 0, n_pos, true, with.data());
            attention_kernels(isa).scores(q.data(), bare, 0, n_pos, true, without.data());
            CHECK(with == without);
        }
    }
}

namespace {

KvShape store_shape(DomType type, int n_dom) { return {4, 3, 20, 50, 2, n_dom, 1, type}; }

// The addresses of all bytes of all planes of both sequences; fails when two spans share one.
size_t bytes_of_planes(const KvStore& kv) {
    std::set<uint8_t*> seen;
    size_t n = 0;
    for (int32_t seq = 0; seq < 2; ++seq) {
        kv.for_each_span(seq, kv.shape().n_ctx, [&](uint8_t* data, size_t n_bytes) {
            n += n_bytes;
            for (size_t i = 0; i < n_bytes; ++i) seen.insert(data + i);
        });
    }
    CHECK(seen.size() == n);
    return n;
}

}  // namespace

TEST(a_cache_with_codes_has_the_planned_bytes) {
    const auto device = make_cpu_device(1);
    for (const DomType type : {DomType::f16, DomType::int8, DomType::q4}) {
        for (const int n_dom : {0, 2, 6, 20}) {
            const KvShape shape = store_shape(type, n_dom);
            const KvStore kv(shape, {}, *device);
            CHECK(bytes_of_planes(kv) == shape.n_bytes());
            const size_t of_dom = type == DomType::f16 ? 2 * n_dom : n_dom == 0 ? 0 : code_bytes(type, n_dom) + 2;
            CHECK(shape.dom_bytes() == of_dom * 3 * 3 * 50 * 2);  // split layers, KV heads, tokens, sequences
            const size_t of_row = 80 - (type == DomType::f16 ? 2 * n_dom : 0);
            CHECK(shape.rest_bytes() == size_t{50} * 2 * 3 * (80 + 3 * of_row));
            for (int32_t layer = 0; layer < 4; ++layer) {
                const KvView view = kv.layer(layer);
                CHECK(view.n_dominant() == (layer == 0 ? 0 : n_dom));
                CHECK(view.is_coded() == (layer > 0 && n_dom > 0 && type != DomType::f16));
                CHECK(view.n_dom == (view.is_coded() ? 0 : view.n_dominant()));
            }
        }
    }
}

TEST(a_copied_sequence_has_its_codes) {
    const auto device = make_cpu_device(1);
    for (const DomType type : coded_types) {
        KvStore kv(store_shape(type, 6), {}, *device);
        uint8_t next = 1;
        kv.for_each_span(0, 50, [&](uint8_t* data, size_t n) {
            for (size_t i = 0; i < n; ++i) data[i] = next = static_cast<uint8_t>(next * 5 + 3);
        });
        kv.copy(1, 0, 30);
        std::vector<std::vector<uint8_t>> from, to;
        const auto keep = [](auto& spans) {
            return [&](const uint8_t* data, size_t n) { spans.emplace_back(data, data + n); };
        };
        kv.for_each_span(0, 30, keep(from));
        kv.for_each_span(1, 30, keep(to));
        CHECK(from == to);
        const KeyCodes after = kv.layer(3).codes_at(1, 2, 30);
        CHECK(after.scale[0] == 0 &&
              std::all_of(after.code, after.code + after.row_bytes(), [](int c) { return c == 0; }));
    }
}

// Rotated keys go into the rows whole, and their codes are those of the rows.
TEST(rope_store_writes_codes_of_the_stored_key) {
    const int head_dim = 20, n_head = 4, n_head_kv = 2, n = 7, n_ctx = 16;
    const auto device = make_cpu_device(1);
    std::vector<float> q(n * n_head * head_dim), k(n * n_head_kv * head_dim), v(k.size());
    for (size_t i = 0; i < k.size(); ++i) {
        k[i] = std::sin(0.7f * static_cast<float>(i));
        v[i] = std::cos(1.1f * static_cast<float>(i));
    }
    const std::vector<double> frequency = {1.0, 0.5, 0.25, 0.1};
    std::vector<int16_t> order;
    for (int h = 0; h < n_head_kv; ++h) {
        for (int d = 0; d < head_dim; ++d) order.push_back(static_cast<int16_t>((d * 7 + h) % head_dim));
    }
    const std::vector<int32_t> tokens(n);
    const Rows rows{1, 3, n};
    for (const DomType type : coded_types) {
        const KvStore exact({1, n_head_kv, head_dim, n_ctx, 2, 0, 0}, order, *device);
        const KvStore coded({1, n_head_kv, head_dim, n_ctx, 2, 6, 0, type}, order, *device);
        const auto ops = device->make_ops({16, 64, n_head, n_head_kv, head_dim, n_ctx});
        ops->begin({rows, tokens.data(), 10, {RopeLayout::interleaved, 8, frequency.data(), 1.0}});
        for (const KvStore* kv : {&exact, &coded}) {
            auto queries = q;
            ops->rope_store(queries.data(), k.data(), v.data(), n_head, {}, kv->layer(0), rows);
        }
        for (int h = 0; h < n_head_kv; ++h) {
            for (int pos = 3; pos < 3 + n; ++pos) {
                const uint16_t* row = coded.layer(0).rest_at(1, h, pos);
                CHECK(std::equal(row, row + 2 * head_dim, exact.layer(0).rest_at(1, h, pos)));
                Coded expected(type, 6);
                expected.encode(Isa::scalar, row);
                const KeyCodes stored = coded.layer(0).codes_at(1, h, pos);
                CHECK(*stored.scale == expected.scale && expected.scale != 0);
                CHECK(std::equal(stored.code, stored.code + stored.row_bytes(), expected.code.begin()));
            }
        }
    }
}

// A step keeps the positions with the best scores by codes, and counts the bytes of codes and scales.
TEST(fasa_ranks_by_codes) {
    for (const DomType type : coded_types) {
        lab::Shape shape;
        shape.n_dom = 6;
        shape.n_dense = 1;
        shape.dom_type = type;
        lab::Lab l(shape);
        SelectConfig c;
        c.method = "fasa";
        c.n_tip = 3;
        c.n_fac = 40;
        c.n_sink = 2;
        c.n_recent = 5;
        c.dense_layers = 1;
        c.dense_below = 0;
        l.make(c);
        l.append(1, 0, 300);
        const auto lists = l.step(1, 300);
        CHECK(lists[0].empty());
        for (int32_t layer = 1; layer < shape.n_layer; ++layer) {
            CHECK(lists[static_cast<size_t>(layer)].size() == 2);
            for (int32_t head_kv = 0; head_kv < 2; ++head_kv) {
                const KvView view = l.kv.layer(layer);
                std::vector<double> scores;
                for (int32_t pos = 0; pos <= 300; ++pos) {
                    const KeyCodes codes = view.codes_at(1, head_kv, pos);
                    Coded row(type, 6);
                    std::copy_n(codes.code, codes.row_bytes(), row.code.begin());
                    double sum = 0;
                    for (int32_t d = 0; d < 6; ++d) {
                        const int32_t dim = view.order_of(head_kv)[d];
                        for (int32_t head = 2 * head_kv; head < 2 * head_kv + 2; ++head) {
                            sum += l.query(layer, 1, head, 300, dim) * row.at(d);
                        }
                    }
                    scores.push_back(sum * double{half_to_float(*codes.scale)});
                }
                CHECK(lists[static_cast<size_t>(layer)][static_cast<size_t>(head_kv)] == lab::best(scores, 40, 2, 5));
            }
        }
        const uint64_t of_codes = static_cast<uint64_t>(code_bytes(type, 6)) + 2;
        const uint64_t dense = 301 * 2 * 32, ranking = 2 * 301 * 2 * of_codes, chosen = 2 * 80 * 32;
        CHECK(l.sparsity->counts.key_bytes == dense + ranking + chosen);
    }
}
