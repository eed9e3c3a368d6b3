// A KV cache of random keys and random queries, and selectors at work on it: what tests of selection share. They run on
// the CPU, and, compiled with FASA_LAB_ON_CUDA, on the GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "backend/cpu/elementwise_kernels.h"
#include "base/half.h"
#include "kv/store.h"
#include "select/sparsity.h"

namespace lab {

using namespace fasa;
using Positions = std::vector<int32_t>;
using Lists = std::vector<Positions>;

inline constexpr float scale = 0.35f;

inline std::unique_ptr<Device> make_device() {
#if FASA_LAB_ON_CUDA
    return make_cuda_device(0, 2, 0);
#else
    return make_cpu_device(2);
#endif
}

struct Shape {
    int32_t n_layer = 3, n_head = 4, n_head_kv = 2, n_ctx = 700, n_seq = 2;
    ChunkLayout layout = {RopeLayout::interleaved, 16, 16};
    int32_t n_dom = 0, n_dense = 0;  // of the store
    Criterion store_criterion = Criterion::mass;
    DomType dom_type = DomType::f16;

    int32_t head_dim() const { return layout.head_dim; }
    SelectShape select() const { return {n_layer, n_head, n_head_kv, n_ctx, n_seq, layout}; }
};

inline Table random_table(const Shape& s, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(0, 1);
    const int32_t n_chunk = s.layout.n_chunk();
    Table t{s.n_layer, s.n_head, s.n_head_kv, n_chunk, Criterion::mass, {}, {}, {}};
    for (int64_t i = 0; i < int64_t{s.n_layer} * s.n_head * n_chunk; ++i) t.ca.push_back(uniform(random));
    const auto orders = [&](int32_t n_set, std::vector<uint16_t>& out) {
        std::vector<uint16_t> order(static_cast<size_t>(n_chunk));
        std::iota(order.begin(), order.end(), uint16_t{0});
        for (int32_t set = 0; set < n_set; ++set) {
            std::shuffle(order.begin(), order.end(), random);
            out.insert(out.end(), order.begin(), order.end());
        }
    };
    orders(s.n_layer * s.n_head_kv, t.order);
    orders(s.n_layer * s.n_head, t.order_head);
    return t;
}

inline std::vector<int16_t> store_order(const Shape& s, const Table& table) {
    std::vector<int16_t> order;
    for (int32_t i = 0; s.n_dom > 0 && i < s.n_layer * s.n_head_kv; ++i) {
        std::vector<uint16_t> chosen;
        if (i / s.n_head_kv >= s.n_dense) {
            chosen = fill_dims(s.layout, table.ranking(i / s.n_head_kv, i % s.n_head_kv, s.store_criterion), s.n_dom);
        }
        const auto dims = dim_order(s.layout, chosen);
        order.insert(order.end(), dims.begin(), dims.end());
    }
    return order;
}

// Queries, keys and values are numbered by the file's dims; the cache has them in its own order.
class Lab {
   public:
    explicit Lab(const Shape& shape, int32_t n_batch = 64)
        : s(shape),
          table(random_table(shape, 11)),
          order(store_order(shape, table)),
          device(make_device()),
          kv({s.n_layer, s.n_head_kv, s.head_dim(), s.n_ctx, s.n_seq, s.n_dom, s.n_dense, s.dom_type}, order, *device),
          ops(device->make_ops({n_batch, 64, s.n_head, s.n_head_kv, s.head_dim(), s.n_ctx, 64})) {
        Arena measure;
        SelectScratch::take(measure, s.select());
        memory = device->buffer(measure.used(), "test");
        device_q = device->buffer(sizeof(float) * s.n_ctx * s.n_head * s.head_dim(), "test");
        device_y = device->buffer(sizeof(float) * s.n_head * s.head_dim(), "test");
        Arena arena(memory.data());
        scratch = SelectScratch::take(arena, s.select());
        keys.resize(static_cast<size_t>(s.n_layer * s.n_seq * s.n_head_kv) * s.n_ctx * s.head_dim());
        queries.resize(static_cast<size_t>(s.n_layer * s.n_seq * s.n_head) * s.n_ctx * s.head_dim());
    }

    void make(const SelectConfig& c) {
        config = c;
        ops->forget_runs();
        sparsity = std::make_unique<Sparsity>(SelectorSetup{config, s.select(), &table, order, *device, *ops, scratch});
    }

    double& key(int32_t layer, int32_t seq, int32_t head_kv, int32_t pos, int32_t d) {
        return keys[(((int64_t{layer} * s.n_seq + seq) * s.n_head_kv + head_kv) * s.n_ctx + pos) * s.head_dim() + d];
    }
    double& query(int32_t layer, int32_t seq, int32_t head, int32_t pos, int32_t d) {
        return queries[(((int64_t{layer} * s.n_seq + seq) * s.n_head + head) * s.n_ctx + pos) * s.head_dim() + d];
    }
    double score(int32_t layer, int32_t seq, int32_t head, int32_t q_pos, int32_t pos) {
        double sum = 0;
        for (int32_t d = 0; d < s.head_dim(); ++d) {
            sum += query(layer, seq, head, q_pos, d) * key(layer, seq, head * s.n_head_kv / s.n_head, pos, d);
        }
        return sum;
    }
    // Softmax weights of one query over the listed positions.
    std::vector<double> weights(int32_t layer, int32_t seq, int32_t head, int32_t q_pos, const Positions& over) {
        std::vector<double> w;
        for (const int32_t pos : over) w.push_back(scale * score(layer, seq, head, q_pos, pos));
        const double top = *std::max_element(w.begin(), w.end());
        double sum = 0;
        for (double& x : w) sum += x = std::exp(x - top);
        for (double& x : w) x /= sum;
        return w;
    }

    // New random tokens at n positions from pos0 on, in all layers: stored and observed, but not selected for.
    void append(int32_t seq, int32_t pos0, int32_t n) {
        for (int32_t layer = 0; layer < s.n_layer; ++layer) append_layer(layer, seq, pos0, n);
    }
    // One decode step at position pos: the lists of every layer, empty for a dense one.
    std::vector<Lists> step(int32_t seq, int32_t pos) {
        std::vector<Lists> out;
        const bool replayable = sparsity->replayable(), may_be_sparse = sparsity->is_sparse(pos + 1);
        for (int32_t layer = 0; layer < s.n_layer; ++layer) {
            append_layer(layer, seq, pos, 1);
            const bool sparse = may_be_sparse && layer >= config.dense_layers;
            const Selection* chosen = sparse ? &scratch.selection : nullptr;  // unless attend is called and says so
            const int32_t token = 0;
            ops->begin({{seq, pos, 1}, &token, pos + 1, {}});
            ops->run(replayable ? 2 * static_cast<uint64_t>(layer) + sparse + 1 : 0, [&] {
                const auto* q = static_cast<const float*>(device_q.data());
                auto* y = static_cast<float*>(device_y.data());
                chosen = sparsity->attend(y, layer, {seq, pos, 1}, q, scale, kv.layer(layer));
            });
            out.push_back(chosen ? lists(*chosen) : Lists{});
        }
        if (replayable) sparsity->count_step({seq, pos, 1}, kv);
        return out;
    }

    const Shape s;
    const Table table;
    const std::vector<int16_t> order;
    std::unique_ptr<Device> device;
    KvStore kv;
    std::unique_ptr<Ops> ops;
    Buffer memory, device_q, device_y;
    SelectScratch scratch{};
    SelectConfig config;
    std::unique_ptr<Sparsity> sparsity;

   private:
    void append_layer(int32_t layer, int32_t seq, int32_t pos0, int32_t n) {
        const KvView view = kv.layer(layer);
        const int32_t head_dim = s.head_dim(), group = s.n_head / s.n_head_kv;
        const size_t n_rows = static_cast<size_t>(n), n_dom = static_cast<size_t>(view.n_dom);
        const size_t n_head_kv = static_cast<size_t>(s.n_head_kv), row = static_cast<size_t>(view.row_values());
        std::vector<float> q(n_rows * s.n_head * head_dim);
        std::vector<uint16_t> dom(n_head_kv * n_rows * n_dom), rest(n_head_kv * n_rows * row);
        for (int32_t i = 0; i < n; ++i) {
            for (int32_t head = 0; head < s.n_head_kv; ++head) {
                const int16_t* dims = kv.order_of(layer, head);
                const size_t at = head * n_rows + i;
                for (int32_t d = 0; d < head_dim; ++d) {
                    const uint16_t half = float_to_half(normal(random));
                    (d < view.n_dom ? dom[at * n_dom + d] : rest[at * row + d - n_dom]) = half;
                    key(layer, seq, head, pos0 + i, dims ? dims[d] : d) = half_to_float(half);
                }
                if (view.is_coded()) {
                    const KeyCodes coded = view.codes_at(seq, head, pos0 + i);
                    std::vector<uint8_t> code(static_cast<size_t>(coded.row_bytes()));
                    uint16_t scale_bits = 0;
                    cpu::elementwise_kernels(cpu_info().isa)
                        .encode(code.data(), &scale_bits, rest.data() + at * row, coded.type, coded.n);
                    device->copy(coded.code, code.data(), code.size());
                    device->copy(coded.scale, &scale_bits, sizeof scale_bits);
                }
            }
            for (int32_t head = 0; head < s.n_head; ++head) {
                const int16_t* dims = kv.order_of(layer, head / group);
                for (int32_t d = 0; d < head_dim; ++d) {
                    const float value = 1.5f * normal(random);
                    q[(int64_t{i} * s.n_head + head) * head_dim + d] = value;
                    query(layer, seq, head, pos0 + i, dims ? dims[d] : d) = static_cast<double>(value);
                }
            }
        }
        for (int32_t head = 0; head < s.n_head_kv; ++head) {
            device->copy(view.dom_at(seq, head, pos0), dom.data() + head * n_rows * n_dom, 2 * n_rows * n_dom);
            device->copy(view.rest_at(seq, head, pos0), rest.data() + head * n_rows * row, 2 * n_rows * row);
        }
        device->copy(device_q.data(), q.data(), sizeof(float) * q.size());
        const auto* observed = static_cast<const float*>(device_q.data());
        if (sparsity) sparsity->observe(layer, {seq, pos0, n}, observed, scale, view);
        ops->wait();
    }

    Lists lists(const Selection& chosen) {
        Lists out;
        for (int32_t set = 0; set < chosen.n_set; ++set) {
            const int32_t count = *ops->on_host(chosen.count + set, 1);
            const int32_t* list = ops->on_host(chosen.list(set), count);
            out.emplace_back(list, list + count);
        }
        return out;
    }

    std::mt19937 random{5};
    std::normal_distribution<float> normal;
    std::vector<double> keys, queries;
};

inline Positions range(int32_t first, int32_t last) {
    Positions all(static_cast<size_t>(std::max(0, last - first)));
    std::iota(all.begin(), all.end(), first);
    return all;
}

// The best `keep` of the scores' indices: the first n_sink, the last n_recent, then the highest; ascending.
inline Positions best(const std::vector<double>& scores, int32_t keep, int32_t n_sink, int32_t n_recent) {
    const int32_t n = static_cast<int32_t>(scores.size());
    keep = std::min(keep, n);
    n_sink = std::min(n_sink, keep);
    n_recent = std::min(n_recent, keep - n_sink);
    Positions ranked = range(n_sink, n - n_recent), chosen = range(0, n_sink);
    std::stable_sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    chosen.insert(chosen.end(), ranked.begin(), ranked.begin() + (keep - n_sink - n_recent));
    for (const int32_t pos : range(n - n_recent, n)) chosen.push_back(pos);
    std::sort(chosen.begin(), chosen.end());
    return chosen;
}

}  // namespace lab
