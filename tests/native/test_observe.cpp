// Observation of attention and keys: every instruction set against the reference, the ops against double precision.
#include <limits>

#include "backend/cpu/observe.h"
#include "check.h"
#include "select_lab.h"

using namespace fasa;
using namespace fasa::cpu;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

std::vector<const ObserveKernels*> vector_kernels() {
    std::vector<const ObserveKernels*> kernels;
#if FASA_X86
    if (cpu_info().isa != Isa::scalar) kernels.push_back(&observe_kernels(Isa::avx2));
    if (cpu_info().isa == Isa::avx512) kernels.push_back(&observe_kernels(Isa::avx512));
#endif
    return kernels;
}

std::vector<float> random_floats(int64_t n, unsigned seed, float spread) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = normal(random);
    return values;
}

double worst(const std::vector<float>& a, const std::vector<float>& b) {
    double difference = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        if (a[i] != b[i]) difference = std::max(difference, double{std::fabs(a[i] - b[i])});
    }
    return difference;
}

lab::Shape shape_of(int32_t head_dim, int32_t n_dom, int32_t n_head, int32_t n_head_kv) {
    lab::Shape s;
    s.n_layer = 1;
    s.n_head = n_head;
    s.n_head_kv = n_head_kv;
    s.layout = {RopeLayout::half_split, head_dim, head_dim};
    s.n_dom = n_dom;
    return s;
}

// The mass that rows [pos0, pos0 + n) of sequence 1 give, in double precision.
std::vector<std::vector<double>> exact_mass(lab::Lab& l, int32_t n_set, int32_t pos0, int32_t n,
                                            const lab::Lists& lists) {
    std::vector<std::vector<double>> mass(static_cast<size_t>(n_set));
    for (int32_t set = 0; set < n_set; ++set) {
        mass[set].resize(static_cast<size_t>(l.s.n_ctx));
        for (int32_t head = set * l.s.n_head / n_set; head < (set + 1) * l.s.n_head / n_set; ++head) {
            for (int32_t row = pos0; row < pos0 + n; ++row) {
                const auto over = lists.empty() ? lab::range(0, row + 1) : lists[set];
                const auto weights = l.weights(0, 1, head, row, over);
                for (size_t j = 0; j < over.size(); ++j) mass[set][over[j]] += weights[j];
            }
        }
    }
    return mass;
}

void check_mass(const std::vector<float>& found, const std::vector<std::vector<double>>& expected, int32_t n_ctx) {
    double difference = 0;
    for (size_t set = 0; set < expected.size(); ++set) {
        for (int32_t pos = 0; pos < n_ctx; ++pos) {
            difference = std::max(difference, std::fabs(found[set * n_ctx + pos] - 1 - expected[set][pos]));
        }
    }
    CHECK_NEAR(difference, 0.0, 2e-5);
}

// The queries of rows in the order of the cache.
std::vector<float> cache_queries(lab::Lab& l, int32_t pos0, int32_t n) {
    std::vector<float> q;
    for (int32_t row = pos0; row < pos0 + n; ++row) {
        for (int32_t head = 0; head < l.s.n_head; ++head) {
            const int16_t* dims = l.kv.layer(0).order_of(head / (l.s.n_head / l.s.n_head_kv));
            for (int32_t d = 0; d < l.s.head_dim(); ++d) {
                q.push_back(static_cast<float>(l.query(0, 1, head, row, dims ? dims[d] : d)));
            }
        }
    }
    return q;
}

}  // namespace

TEST(observe_kernels_agree_with_the_reference) {
    for (const ObserveKernels* fast : vector_kernels()) {
        for (const auto& [head_dim, n_dom] : {std::pair{64, 0}, {64, 16}, {20, 6}, {80, 10}, {2, 2}, {128, 128}}) {
            for (const int n : {1, 7, 63, kv_tile}) {
                const int stride = key_stride(head_dim), n_q = n % 2 ? 16 : 48;
                const auto values = random_floats(int64_t{200} * 2 * head_dim, 3, 1.0f);
                std::vector<uint16_t> halves;
                for (const float v : values) halves.push_back(float_to_half(v));
                const KvHead kv{halves.data(), halves.data() + 200 * n_dom, n_dom, head_dim};
                std::vector<int32_t> listed;
                for (int j = 0; j < n; ++j) listed.push_back(3 * j + j % 2);
                for (const int32_t* positions : {static_cast<const int32_t*>(nullptr), std::as_const(listed).data()}) {
                    std::vector<float> keys(static_cast<size_t>(kv_tile * stride)), expected(keys);
                    fast->widen(kv, positions, 5, n, keys.data());
                    scalar::observe.widen(kv, positions, 5, n, expected.data());
                    for (int j = 0; j < n; ++j) {
                        CHECK(std::equal(&keys[j * stride], &keys[j * stride] + head_dim, &expected[j * stride]));
                    }
                    const auto qt = random_floats(int64_t{head_dim} * n_q, 4, 0.3f);
                    std::vector<float> scores(static_cast<size_t>(n * n_q)), scores_expected(scores);
                    fast->score(expected.data(), qt.data(), n, n_q, head_dim, scores.data());
                    scalar::observe.score(expected.data(), qt.data(), n, n_q, head_dim, scores_expected.data());
                    CHECK_NEAR(worst(scores, scores_expected), 0.0, 2e-5);
                }
            }
        }
    }
    CHECK(vector_kernels().empty() == (cpu_info().isa == Isa::scalar));
}

TEST(observe_softmax_kernels_agree_with_the_reference) {
    const int n_q = 32, n = 40;
    auto scores = random_floats(n * n_q, 5, 8.0f);
    for (int j = 0; j < n; ++j) {
        scores[j * n_q + 3] = -infinity;               // sees nothing
        if (j >= 10) scores[j * n_q + 4] = -infinity;  // sees the first tile only
        if (j < 30) scores[j * n_q + 5] = -infinity;   // sees the last tile only
        if (j == 7) scores[j * n_q + 6] = 3e30f;       // far above all others
    }
    const auto run = [&](const ObserveKernels& k, std::vector<float>& top, std::vector<float>& sum,
                         std::vector<float>& weight) {
        top.assign(n_q, -infinity);
        sum.assign(n_q, 0.0f);
        for (int j = 0; j < n; j += 10) k.fold(&scores[j * n_q], 10, n_q, top.data(), sum.data());
        std::vector<float> log_sum(n_q);
        for (int i = 0; i < n_q; ++i) log_sum[i] = i % 16 == 15 || i == 3 ? infinity : top[i] + std::log(sum[i]);
        weight.resize(n);
        k.weigh(scores.data(), n, n_q, log_sum.data(), weight.data());
    };
    std::vector<float> top, sum, weight, top_fast, sum_fast, weight_fast;
    run(scalar::observe, top, sum, weight);
    CHECK(top[3] == -infinity && sum[3] == 0.0f);
    CHECK_NEAR(std::accumulate(weight.begin(), weight.end(), 0.0), n_q - 3.0, 1e-4);
    for (const ObserveKernels* fast : vector_kernels()) {
        run(*fast, top_fast, sum_fast, weight_fast);
        CHECK(top_fast == top);
        CHECK_NEAR(worst(sum_fast, sum), 0.0, 1e-4);
        CHECK_NEAR(worst(weight_fast, weight), 0.0, 1e-5);
    }
}

TEST(attention_mass_of_rows) {
    for (const auto& [head_dim, n_dom, n_head, n_head_kv] :
         {std::tuple{16, 0, 4, 2}, {20, 6, 6, 2}, {64, 16, 3, 1}, {10, 0, 2, 2}}) {
        lab::Lab l(shape_of(head_dim, n_dom, n_head, n_head_kv), 24);  // more rows than a batch: in several parts
        l.append(1, 0, 640);
        for (const auto& [pos0, n] : {std::pair{0, 1}, {0, 70}, {500, 33}, {639, 1}, {0, 640}}) {
            for (const int32_t n_set : {n_head_kv, n_head}) {
                std::vector<float> mass(static_cast<size_t>(n_set * l.s.n_ctx), 1.0f);  // added to what is there
                const auto q = cache_queries(l, pos0, n);
                l.ops->attention_mass(mass.data(), n_set, q.data(), n_head, lab::scale, l.kv.layer(0), {1, pos0, n});
                check_mass(mass, exact_mass(l, n_set, pos0, n, {}), l.s.n_ctx);
            }
        }
    }
}

TEST(attention_mass_over_a_selection) {
    for (const auto& [head_dim, n_dom] : {std::pair{16, 0}, {20, 6}}) {
        lab::Lab l(shape_of(head_dim, n_dom, 6, 2));
        l.append(1, 0, 400);
        for (const int32_t n_set : {2, 6}) {
            lab::Lists lists;
            l.scratch.selection.n_set = n_set;
            for (int32_t set = 0; set < n_set; ++set) {
                lab::Positions list;
                for (int32_t pos = set; pos < 400; pos += 1 + set) list.push_back(pos);
                std::copy(list.begin(), list.end(), l.scratch.selection.list(set));
                l.scratch.selection.count[set] = static_cast<int32_t>(list.size());
                lists.push_back(list);
            }
            std::vector<float> mass(static_cast<size_t>(n_set * l.s.n_ctx), 1.0f);
            const auto q = cache_queries(l, 399, 1);
            l.ops->selected_mass(mass.data(), q.data(), 6, lab::scale, l.kv.layer(0), 1, l.scratch.selection);
            check_mass(mass, exact_mass(l, n_set, 399, 1, lists), l.s.n_ctx);
        }
    }
}

TEST(page_bounds_of_keys) {
    for (const auto& [head_dim, n_dom] : {std::pair{16, 0}, {20, 6}}) {
        lab::Lab l(shape_of(head_dim, n_dom, 4, 2));
        l.append(1, 0, 333);
        for (const int32_t page : {1, 16, 100}) {
            const int32_t n_page_max = (l.s.n_ctx + page - 1) / page, first_page = page == 1 ? 7 : 1;
            std::vector<uint16_t> extremes(static_cast<size_t>(2 * n_page_max * 2 * head_dim)), spread(extremes);
            const KvView view = l.kv.layer(0);
            l.ops->page_bounds(extremes.data(), view, 1, page, first_page, 333, PageBounds::min_max);
            l.ops->page_bounds(spread.data(), view, 1, page, first_page, 333, PageBounds::mean_std);
            for (int32_t i = 0; i < 2 * n_page_max * head_dim; ++i) {
                const int32_t head = i / (n_page_max * head_dim), p = i / head_dim % n_page_max, d = i % head_dim;
                const int64_t at = (int64_t{head} * n_page_max + p) * 2 * head_dim + d;
                if (p < first_page || p * page >= 333) {
                    CHECK(extremes[at] == 0 && spread[at + head_dim] == 0);
                    continue;
                }
                double high = -1e9, low = 1e9, sum = 0, squares = 0;
                const int32_t n = std::min(page, 333 - p * page);
                const int16_t* dims = view.order_of(head);
                for (int32_t j = 0; j < n; ++j) {
                    const double k = l.key(0, 1, head, p * page + j, dims ? dims[d] : d);
                    high = std::max(high, k);
                    low = std::min(low, k);
                    sum += k;
                }
                for (int32_t j = 0; j < n; ++j) {
                    squares += std::pow(l.key(0, 1, head, p * page + j, dims ? dims[d] : d) - sum / n, 2);
                }
                CHECK(half_to_float(extremes[at]) == high && half_to_float(extremes[at + head_dim]) == low);
                CHECK_NEAR(half_to_float(spread[at]), sum / n + std::sqrt(squares / n), 3e-3);
                CHECK_NEAR(half_to_float(spread[at + head_dim]), sum / n - std::sqrt(squares / n), 3e-3);
            }
        }
    }
}

TEST(key_similarity_is_the_mean_cosine) {
    for (const auto& [head_dim, n_dom] : {std::pair{16, 0}, {20, 6}}) {
        lab::Lab l(shape_of(head_dim, n_dom, 4, 2));
        l.append(1, 0, 150);
        const KvView view = l.kv.layer(0);
        for (int32_t d = 0; d < head_dim; ++d) {  // a key of zeros
            l.key(0, 1, 1, 9, d) = 0;
            (d < n_dom ? view.dom_at(1, 1, 9)[d] : view.rest_at(1, 1, 9)[d - n_dom]) = 0;
        }
        for (const int32_t n_pos : {1, 2, 64, 150}) {
            std::vector<float> found(static_cast<size_t>(2 * l.s.n_ctx));
            l.ops->key_similarity(found.data(), view, 1, n_pos);
            for (int32_t head = 0; head < 2; ++head) {
                for (int32_t a = 0; a < n_pos; ++a) {
                    double mean = 0;
                    for (int32_t b = 0; b < n_pos; ++b) {
                        double dot = 0, aa = 0, bb = 0;
                        for (int32_t d = 0; d < head_dim; ++d) {
                            const double x = l.key(0, 1, head, a, d), y = l.key(0, 1, head, b, d);
                            dot += x * y;
                            aa += x * x;
                            bb += y * y;
                        }
                        if (a != b && aa > 0 && bb > 0) mean += dot / std::sqrt(aa * bb) / (n_pos - 1);
                    }
                    CHECK_NEAR(found[head * l.s.n_ctx + a], mean, 1e-5);
                }
            }
        }
    }
}
