#include "backend/cpu/attention.h"

#include <algorithm>
#include <cmath>

namespace fasa::cpu {
namespace {

constexpr int decode_rows = 3;  // batches up to this size stream the cache row by row instead of in tiles
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
            arena.take<float>(n_head * stride), arena.take<float>(n_chunk * n_head * stride),
            arena.take<SoftmaxState>(n_chunk * n_head)};
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

void Attention::run(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows) {
    if (rows.n > decode_rows) return prefill(y, q, n_head, scale, kv, rows);
    const int64_t row = int64_t{n_head} * kv.head_dim;
    for (int32_t i = 0; i < rows.n; ++i) decode(y + i * row, q + i * row, n_head, scale, kv, rows.seq, rows.pos0 + i);
}

// Tasks are (KV head, chunk of positions) of a size that does not depend on the threads, so neither does the result.
void Attention::decode(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq, int32_t pos) {
    const int head_dim = kv.head_dim, stride = padded(head_dim), group = n_head / kv.n_head_kv;
    const int n_chunk = pos / kv_chunk + 1;
    for (int h = 0; h < n_head; ++h) {
        for (int d = 0; d < head_dim; ++d) scratch_.q[h * stride + d] = q[h * head_dim + d] * scale;
    }
    team_.run(int64_t{kv.n_head_kv} * n_chunk, [&](int64_t task, int) {
        const int head_kv = static_cast<int>(task / n_chunk), c = static_cast<int>(task % n_chunk);
        const int first = c * kv_chunk, n_pos = std::min(kv_chunk, pos + 1 - first);
        const int64_t at = int64_t{c} * n_head + head_kv * group;
        SoftmaxState* state = scratch_.state + at;
        for (int i = 0; i < group; ++i) state[i].values = scratch_.values + (at + i) * stride;
        kernels_.chunk(scratch_.q + int64_t{head_kv} * group * stride, group, head_dim, kv.row(seq, head_kv, first),
                       n_pos, state);
    });
    for (int h = 0; h < n_head; ++h) merge(y + int64_t{h} * head_dim, scratch_.state + h, n_chunk, n_head, head_dim);
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
        kernels_.tile(qt, n_q, head_dim, kv.row(rows.seq, head_kv, 0), n_visible, out_t, kernel_scratch);
        for (int i = 0; i < n_q; ++i) {
            float* to = y + (int64_t{row0 + i / n_heads} * n_head + head0 + i % n_heads) * head_dim;
            for (int d = 0; d < head_dim; ++d) to[d] = out_t[d * n + i];
        }
    });
}

}  // namespace fasa::cpu
