#include "backend/cpu/attention.h"

#include <algorithm>
#include <cmath>

namespace fasa::cpu {
namespace {

constexpr int score_chunk = 4096;  // positions in one task of scoring: a task should outlast its start
constexpr int decode_rows = 3;     // batches up to this size stream the cache row by row instead of in tiles
static_assert(decode_rows < n_rows_alike);

int64_t tile_values(int head_dim) {
    // transposed queries, transposed output, kernel scratch, visible counts
    return 2 * int64_t{head_dim} * max_queries + tile_scratch(head_dim) + max_queries;
}

void merge(float* y, const SoftmaxState* state, int n_chunk, int stride, int head_dim) {
    float top = state[0].max;
    for (int c = 1; c < n_chunk; ++c) top = std::max(top, state[int64_t{c} * stride].max);
    float sum = 0;
    std::fill_n(y, head_dim, 0.0f);
    for (int c = 0; c < n_chunk; ++c) {
        const SoftmaxState& s = state[int64_t{c} * stride];
        const float weight = std::exp(s.max - top);
        sum += weight * s.sum;
        for (int d = 0; d < head_dim; ++d) y[d] += weight * s.values[d];
    }
    for (int d = 0; d < head_dim; ++d) y[d] /= sum;
}

}  // namespace

const AttentionKernels& attention_kernels([[maybe_unused]] Isa isa) {
#if FASA_X86
    if (isa == Isa::avx512) return avx512::attention;
    if (isa == Isa::avx2) return avx2::attention;
#endif
    return scalar::attention;
}

Attention::Scratch Attention::take(Arena& arena, const OpsLimits& limits, int n_threads) {
    const size_t n_chunk = static_cast<size_t>(limits.n_ctx + kv_chunk - 1) / kv_chunk;
    const size_t n_head = static_cast<size_t>(limits.n_head), stride = static_cast<size_t>(padded(limits.head_dim));
    return {arena.take<float>(static_cast<size_t>(n_threads) * static_cast<size_t>(tile_values(limits.head_dim))),
            arena.take<float>(std::max(n_head, size_t{2}) * (stride + max_lanes)),
            arena.take<float>(n_chunk * n_head * stride), arena.take<SoftmaxState>(n_chunk * n_head)};
}

size_t Attention::scratch_bytes(const OpsLimits& limits, int n_threads) {
    Arena arena;
    take(arena, limits, n_threads);
    return arena.used();
}

Attention::Attention(Team& team, const OpsLimits& limits)
    : kernels_(attention_kernels(cpu_info().isa)),
      team_(team),
      memory_(scratch_bytes(limits, team.n_threads()), "attention scratch") {
    Arena arena(memory_.data());
    scratch_ = take(arena, limits, team.n_threads());
}

void Attention::dense(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows) {
    if (rows.n > decode_rows) return prefill(y, q, n_head, scale, kv, rows);
    const int64_t row = int64_t{n_head} * kv.head_dim;
    for (int32_t i = 0; i < rows.n; ++i) {
        decode(y + i * row, q + i * row, n_head, scale, kv, rows.seq, rows.pos0 + i + 1, nullptr);
    }
}

void Attention::selected(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                         const Selection& selection) {
    decode(y, q, n_head, scale, kv, seq, 0, &selection);
}

void Attention::lay_out(const float* q, int n_q, float scale, const KvView& kv) {
    const int n_dom = kv.n_dom, stride = query_stride(n_dom, kv.head_dim);
    std::fill_n(scratch_.q, int64_t{n_q} * stride, 0.0f);
    for (int i = 0; i < n_q; ++i) {
        const float* from = q + int64_t{i} * kv.head_dim;
        float* to = scratch_.q + int64_t{i} * stride;
        for (int d = 0; d < n_dom; ++d) to[d] = from[d] * scale;
        for (int d = n_dom; d < kv.head_dim; ++d) to[padded(n_dom) + d - n_dom] = from[d] * scale;
    }
}

// Tasks are (set of heads that share positions, chunk of positions), of a size that does not depend on the threads, so
// neither does the result.
void Attention::decode(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq, int32_t n_pos,
                       const Selection* selection) {
    const int head_dim = kv.head_dim, q_stride = query_stride(kv.n_dom, head_dim), stride = padded(head_dim);
    const int n_set = selection ? selection->n_set : kv.n_head_kv, group = n_head / n_set;
    const int32_t longest = selection ? *std::max_element(selection->count, selection->count + n_set) : n_pos;
    const int n_chunk = (longest + kv_chunk - 1) / kv_chunk;
    lay_out(q, n_head, scale, kv);
    team_.run(int64_t{n_set} * n_chunk, [&](int64_t task, int) {
        const int set = static_cast<int>(task / n_chunk), c = static_cast<int>(task % n_chunk), first = c * kv_chunk;
        const int n = std::clamp((selection ? selection->count[set] : n_pos) - first, 0, kv_chunk);
        KvHead cache = kv.head(seq, set * kv.n_head_kv / n_set);
        const int32_t* positions = selection ? selection->list(set) + first : nullptr;
        if (!selection) {
            cache.dom += int64_t{first} * kv.n_dom;
            cache.rest += first * kv.row_values();
        }
        const int64_t at = int64_t{c} * n_head + set * group;
        SoftmaxState* state = scratch_.state + at;
        for (int i = 0; i < group; ++i) state[i].values = scratch_.values + (at + i) * stride;
        kernels_.chunk(scratch_.q + int64_t{set} * group * q_stride, group, cache, positions, n, state);
    });
    for (int h = 0; h < n_head; ++h) merge(y + int64_t{h} * head_dim, scratch_.state + h, n_chunk, n_head, head_dim);
}

void Attention::scores(float* scores, const float* q, int n_q, const KvView& kv, int32_t seq, int32_t n_pos,
                       bool whole_key) {
    const int stride = query_stride(kv.n_dom, kv.head_dim), n_chunk = (n_pos + score_chunk - 1) / score_chunk;
    lay_out(q, n_q, 1.0f, kv);
    team_.run(int64_t{n_q} * n_chunk, [&](int64_t task, int) {
        const int i = static_cast<int>(task / n_chunk), first = static_cast<int>(task % n_chunk) * score_chunk;
        kernels_.scores(scratch_.q + int64_t{i} * stride, kv.head(seq, i * kv.n_head_kv / n_q), first,
                        std::min(score_chunk, n_pos - first), whole_key, scores + int64_t{i} * kv.n_ctx + first);
    });
}

// Tasks are (KV head, tile of rows): the heads of a group and several rows share each conversion of a key.
void Attention::prefill(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows) {
    const int head_dim = kv.head_dim, group = n_head / kv.n_head_kv;
    const int heads_at_once = std::min(group, max_queries);
    const int tile_rows = std::max(1, max_queries / heads_at_once);
    const int n_tile = (rows.n + tile_rows - 1) / tile_rows;
    const int n_part = (group + heads_at_once - 1) / heads_at_once;
    team_.run(int64_t{n_tile} * kv.n_head_kv * n_part, [&](int64_t task, int thread) {
        // Later tiles see more, so they are started first.
        const int tile = n_tile - 1 - static_cast<int>(task / (int64_t{kv.n_head_kv} * n_part));
        const int head_kv = static_cast<int>(task % (int64_t{kv.n_head_kv} * n_part)) / n_part;
        const int head0 = head_kv * group + static_cast<int>(task % n_part) * heads_at_once;
        const int n_heads = std::min(heads_at_once, (head_kv + 1) * group - head0);
        const int row0 = tile * tile_rows, n_rows = std::min(tile_rows, rows.n - row0);
        const int n_q = n_rows * n_heads, n = padded(n_q);

        float* qt = scratch_.tiles + thread * tile_values(head_dim);
        float* out_t = qt + int64_t{head_dim} * max_queries;
        float* kernel_scratch = out_t + int64_t{head_dim} * max_queries;
        auto* n_visible = reinterpret_cast<int32_t*>(kernel_scratch + tile_scratch(head_dim));
        for (int i = 0; i < n; ++i) {
            const int row = row0 + std::min(i, n_q - 1) / n_heads;
            n_visible[i] = rows.pos0 + row + 1;
            const float* from = q + (int64_t{row} * n_head + head0 + i % n_heads) * head_dim;
            for (int d = 0; d < head_dim; ++d) qt[d * n + i] = i < n_q ? from[d] * scale : 0.0f;
        }
        kernels_.tile(qt, n_q, kv.head(rows.seq, head_kv), n_visible, out_t, kernel_scratch);
        for (int i = 0; i < n_q; ++i) {
            float* to = y + (int64_t{row0 + i / n_heads} * n_head + head0 + i % n_heads) * head_dim;
            for (int d = 0; d < head_dim; ++d) to[d] = out_t[d * n + i];
        }
    });
}

}  // namespace fasa::cpu
