#include "backend/cpu/observe.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/half.h"

namespace fasa::cpu {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

int64_t tile_values(int head_dim) {
    return int64_t{head_dim} * max_queries + int64_t{kv_tile} * (key_stride(head_dim) + max_queries + 1) +
           2 * max_queries;
}

int n_tiles(int n_q) { return (n_q + max_queries - 1) / max_queries; }

// Scores [n][n_q] of position first + j are hidden from the queries that see no more than that many positions.
template <class Visible>
void hide_future(float* scores, int n, int n_q, int first, Visible&& n_visible) {
    for (int i = 0; i < n_q; ++i) {
        for (int j = std::clamp(n_visible(i) - first, 0, n); j < n; ++j) scores[int64_t{j} * n_q + i] = -infinity;
    }
}

void finish_log_sums(const float* top, const float* sum, int n, int n_q, float* out) {
    for (int i = 0; i < n_q; ++i) out[i] = i < n ? top[i] + std::log(sum[i]) : infinity;
}

float norm(const float* key, int head_dim) {
    double sum = 0;
    for (int d = 0; d < head_dim; ++d) sum += double{key[d]} * key[d];
    return static_cast<float>(std::sqrt(sum));
}

// What the dims of some keys have been so far.
struct KeyRange {
    explicit KeyRange(int n_dims) : head_dim(n_dims) {
        std::fill_n(high, head_dim, -infinity);
        std::fill_n(low, head_dim, infinity);
        std::fill_n(sum, head_dim, 0.0);
        std::fill_n(squares, head_dim, 0.0);
    }

    void add(const float* keys, int n_keys) {
        for (int j = 0; j < n_keys; ++j) {
            const float* key = keys + int64_t{j} * key_stride(head_dim);
            for (int d = 0; d < head_dim; ++d) {
                high[d] = std::max(high[d], key[d]);
                low[d] = std::min(low[d], key[d]);
                sum[d] += key[d];
                squares[d] += double{key[d]} * key[d];
            }
        }
        n += n_keys;
    }

    // bounds [2][head_dim]
    void write(PageBounds kind, uint16_t* bounds) const {
        for (int d = 0; d < head_dim; ++d) {
            const double mean = sum[d] / n, deviation = std::sqrt(std::max(0.0, squares[d] / n - mean * mean));
            const bool extremes = kind == PageBounds::min_max;
            bounds[d] = float_to_half(extremes ? high[d] : static_cast<float>(mean + deviation));
            bounds[head_dim + d] = float_to_half(extremes ? low[d] : static_cast<float>(mean - deviation));
        }
    }

    int head_dim, n = 0;
    float high[max_head_dim], low[max_head_dim];
    double sum[max_head_dim], squares[max_head_dim];
};

}  // namespace

const ObserveKernels& observe_kernels([[maybe_unused]] Isa isa) {
#ifdef FASA_X86
    if (isa == Isa::avx512) return avx512::observe;
    if (isa == Isa::avx2) return avx2::observe;
#endif
    return scalar::observe;
}

Observation::Scratch Observation::take(Arena& arena, const OpsLimits& limits, int n_threads) {
    const size_t n_tile = static_cast<size_t>(n_tiles(limits.n_batch * limits.n_head) + limits.n_head);
    return {arena.take<float>(static_cast<size_t>(n_threads) * static_cast<size_t>(tile_values(limits.head_dim))),
            arena.take<float>(n_tile * max_queries)};
}

size_t Observation::scratch_bytes(const OpsLimits& limits, int n_threads) {
    Arena arena;
    take(arena, limits, n_threads);
    return arena.used();
}

Observation::Observation(Team& team, const OpsLimits& limits)
    : kernels_(observe_kernels(cpu_info().isa)),
      team_(team),
      limits_(limits),
      memory_(scratch_bytes(limits, team.n_threads()), "observation scratch") {
    Arena arena(memory_.data());
    scratch_ = take(arena, limits, team.n_threads());
}

Observation::Tile Observation::tile(int thread) const {
    Tile t;
    t.qt = scratch_.tiles + thread * tile_values(limits_.head_dim);
    t.keys = t.qt + int64_t{limits_.head_dim} * max_queries;
    t.scores = t.keys + int64_t{kv_tile} * key_stride(limits_.head_dim);
    t.top = t.scores + int64_t{kv_tile} * max_queries;
    t.sum = t.top + max_queries;
    t.weight = t.sum + max_queries;
    return t;
}

int Observation::lay_out(const Queries& queries, int first, int n, const Tile& t) const {
    const int n_q = padded(n), head_dim = limits_.head_dim;
    for (int i = 0; i < n_q; ++i) {
        const int64_t row = (first + i) / queries.heads, head = queries.head + (first + i) % queries.heads;
        const float* from = queries.q + (row * queries.n_head + head) * head_dim;
        for (int d = 0; d < head_dim; ++d) t.qt[d * n_q + i] = i < n ? from[d] * queries.scale : 0.0f;
    }
    return n_q;
}

void Observation::score(const KvHead& kv, const int32_t* positions, int first, int n, int n_q, const Tile& t) const {
    kernels_.widen(kv, positions, first, n, t.keys);
    kernels_.score(t.keys, t.qt, n, n_q, kv.head_dim, t.scores);
}

void Observation::log_sums(const Queries& queries, int first, int n, const KvHead& kv, const Tile& t,
                           float* out) const {
    const int n_q = lay_out(queries, first, n, t);
    const auto n_visible = [&](int i) { return queries.n_visible(first + std::min(i, n - 1)); };
    std::fill_n(t.top, n_q, -infinity);
    std::fill_n(t.sum, n_q, 0.0f);
    for (int32_t at = 0, end = n_visible(n - 1); at < end; at += kv_tile) {
        const int n_keys = std::min(kv_tile, end - at);
        score(kv, nullptr, at, n_keys, n_q, t);
        if (at + n_keys > n_visible(0)) hide_future(t.scores, n_keys, n_q, at, n_visible);
        kernels_.fold(t.scores, n_keys, n_q, t.top, t.sum);
    }
    finish_log_sums(t.top, t.sum, n, n_q, out);
}

void Observation::add_weights(float* mass, const Queries& queries, int first, int n, const KvHead& kv, int32_t begin,
                              int32_t end, const float* log_sum, const Tile& t) const {
    const auto n_visible = [&](int i) { return queries.n_visible(first + std::min(i, n - 1)); };
    end = std::min(end, n_visible(n - 1));
    if (begin >= end) return;
    const int n_q = lay_out(queries, first, n, t);
    for (int32_t at = begin; at < end; at += kv_tile) {
        const int n_keys = std::min(kv_tile, end - at);
        score(kv, nullptr, at, n_keys, n_q, t);
        if (at + n_keys > n_visible(0)) hide_future(t.scores, n_keys, n_q, at, n_visible);
        kernels_.weigh(t.scores, n_keys, n_q, log_sum, t.weight);
        for (int j = 0; j < n_keys; ++j) mass[at + j] += t.weight[j];
    }
}

void Observation::attention_mass(float* mass, int n_set, const float* q, int n_head, float scale, const KvView& kv,
                                 Rows rows) {
    for (int32_t done = 0; done < rows.n; done += limits_.n_batch) {
        const Rows part{rows.seq, rows.pos0 + done, std::min(limits_.n_batch, rows.n - done)};
        mass_of_rows(mass, n_set, q + int64_t{done} * n_head * kv.head_dim, n_head, scale, kv, part);
    }
}

// First every query's sum, then the weights: tasks own positions there, so that no two of them add to the same place
// and the order of additions does not depend on the threads.
void Observation::mass_of_rows(float* mass, int n_set, const float* q, int n_head, float scale, const KvView& kv,
                               Rows rows) {
    const int heads = n_head / n_set, n_q = rows.n * heads, n_tile = n_tiles(n_q);
    const int n_chunk = (rows.pos0 + rows.n + kv_chunk - 1) / kv_chunk;
    const auto queries = [&](int set) { return Queries{q, n_head, set * heads, heads, rows.pos0, scale}; };
    const auto cache = [&](int set) { return kv.head(rows.seq, set * kv.n_head_kv / n_set); };
    const auto sums_at = [&](int set, int i) { return scratch_.log_sums + (int64_t{set} * n_tile + i) * max_queries; };
    const auto size = [&](int i) { return std::min(max_queries, n_q - i * max_queries); };
    team_.run(int64_t{n_set} * n_tile, [&](int64_t task, int thread) {
        const int set = static_cast<int>(task / n_tile), i = static_cast<int>(task % n_tile);
        log_sums(queries(set), i * max_queries, size(i), cache(set), tile(thread), sums_at(set, i));
    });
    team_.run(int64_t{n_set} * n_chunk, [&](int64_t task, int thread) {
        const int set = static_cast<int>(task / n_chunk), begin = static_cast<int>(task % n_chunk) * kv_chunk;
        for (int i = 0; i < n_tile; ++i) {
            add_weights(mass + int64_t{set} * kv.n_ctx, queries(set), i * max_queries, size(i), cache(set), begin,
                        begin + kv_chunk, sums_at(set, i), tile(thread));
        }
    });
}

void Observation::selected_mass(float* mass, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                                const Selection& selection) {
    const int heads = n_head / selection.n_set;
    team_.run(selection.n_set, [&](int64_t task, int thread) {
        const int set = static_cast<int>(task);
        const Tile t = tile(thread);
        const KvHead cache = kv.head(seq, set * kv.n_head_kv / selection.n_set);
        const Queries queries{q, n_head, set * heads, heads, 0, scale};
        const int32_t* list = selection.list(set);
        const int32_t count = selection.count[set];
        for (int first = 0; first < heads; first += max_queries) {
            const int n = std::min(max_queries, heads - first), n_q = lay_out(queries, first, n, t);
            std::fill_n(t.top, n_q, -infinity);
            std::fill_n(t.sum, n_q, 0.0f);
            for (int32_t at = 0; at < count; at += kv_tile) {
                const int n_keys = std::min(kv_tile, count - at);
                score(cache, list + at, 0, n_keys, n_q, t);
                kernels_.fold(t.scores, n_keys, n_q, t.top, t.sum);
            }
            finish_log_sums(t.top, t.sum, n, n_q, t.sum);
            for (int32_t at = 0; at < count; at += kv_tile) {
                const int n_keys = std::min(kv_tile, count - at);
                score(cache, list + at, 0, n_keys, n_q, t);
                kernels_.weigh(t.scores, n_keys, n_q, t.sum, t.weight);
                for (int j = 0; j < n_keys; ++j) mass[int64_t{set} * kv.n_ctx + list[at + j]] += t.weight[j];
            }
        }
    });
}

void Observation::page_bounds(uint16_t* bounds, const KvView& kv, int32_t seq, int32_t page, int32_t first_page,
                              int32_t n_pos, PageBounds kind) {
    const int64_t n_page_max = (kv.n_ctx + page - 1) / page;
    const int32_t n_page = (n_pos + page - 1) / page - first_page;
    team_.run(int64_t{kv.n_head_kv} * n_page, [&](int64_t task, int thread) {
        const int head_kv = static_cast<int>(task / n_page), i = first_page + static_cast<int>(task % n_page);
        float* keys = tile(thread).keys;
        KeyRange range(kv.head_dim);
        for (int32_t at = i * page, end = std::min(at + page, n_pos); at < end; at += kv_tile) {
            const int n = std::min(kv_tile, end - at);
            kernels_.widen(kv.head(seq, head_kv), nullptr, at, n, keys);
            range.add(keys, n);
        }
        range.write(kind, bounds + (head_kv * n_page_max + i) * 2 * kv.head_dim);
    });
}

// The mean over all pairs is one dot product with the sum of the unit keys, less a key's product with itself.
void Observation::key_similarity(float* similarity, const KvView& kv, int32_t seq, int32_t n_pos) {
    team_.run(kv.n_head_kv, [&](int64_t task, int thread) {
        const KvHead cache = kv.head(seq, static_cast<int32_t>(task));
        const Tile t = tile(thread);
        float* out = similarity + task * kv.n_ctx;
        float* total = t.qt;  // [head_dim], as one query beside padding
        const int n_q = padded(1), stride = key_stride(kv.head_dim);
        std::fill_n(total, int64_t{kv.head_dim} * n_q, 0.0f);
        for (int32_t at = 0; at < n_pos; at += kv_tile) {
            const int n = std::min(kv_tile, n_pos - at);
            kernels_.widen(cache, nullptr, at, n, t.keys);
            for (int j = 0; j < n; ++j) {
                const float* key = t.keys + int64_t{j} * stride;
                const float length = norm(key, kv.head_dim);
                out[at + j] = length > 0 ? 1 / length : 0.0f;
                for (int d = 0; d < kv.head_dim; ++d) total[d * n_q] += key[d] * out[at + j];
            }
        }
        for (int32_t at = 0; at < n_pos; at += kv_tile) {
            const int n = std::min(kv_tile, n_pos - at);
            score(cache, nullptr, at, n, n_q, t);
            for (int j = 0; j < n; ++j) {
                const float others = out[at + j] * t.scores[j * n_q] - (out[at + j] > 0 ? 1.0f : 0.0f);
                out[at + j] = n_pos > 1 ? others / static_cast<float>(n_pos - 1) : 0.0f;
            }
        }
    });
}

}  // namespace fasa::cpu
