#include "backend/cuda/host_rows.h"

#include <algorithm>
#include <utility>

namespace fasa::cuda {
namespace {

// Rows of the same positions of every KV head, pitches in rows.
struct HeadRows {
    uint16_t* at;
    int64_t pitch;
};

size_t copy_rows(HeadRows to, HeadRows from, int32_t n, const KvView& kv, cudaStream_t stream) {
    const size_t row_bytes = sizeof(uint16_t) * static_cast<size_t>(kv.row_values());
    const auto heads = static_cast<size_t>(kv.n_head_kv), width = row_bytes * static_cast<size_t>(n);
    check(cudaMemcpy2DAsync(to.at, row_bytes * static_cast<size_t>(to.pitch), from.at,
                            row_bytes * static_cast<size_t>(from.pitch), width, heads, cudaMemcpyDefault, stream),
          "moving rows of the KV cache");
    return heads * width;
}

}  // namespace

HostRows::Memory HostRows::Memory::take(Arena& arena, const OpsLimits& limits, size_t tile_bytes) {
    Memory m;
    if (limits.host_row_values == 0) return m;
    const size_t pos_values = static_cast<size_t>(limits.n_head_kv) * static_cast<size_t>(limits.host_row_values);
    const size_t chunk_bytes = sizeof(uint16_t) * pos_values * prefill_chunk;
    const int32_t n_all = (limits.n_ctx + prefill_chunk - 1) / prefill_chunk;
    m.n_tile_pos = prefill_chunk * std::clamp(static_cast<int32_t>(tile_bytes / chunk_bytes), 1, n_all);
    m.staged = arena.take<uint16_t>(pos_values * static_cast<size_t>(limits.n_batch));
    for (uint16_t*& tile : m.tile) tile = arena.take<uint16_t>(pos_values * static_cast<size_t>(m.n_tile_pos));
    return m;
}

HostRows::~HostRows() {
    cudaStreamSynchronize(in_.get());
    cudaStreamSynchronize(out_.get());
}

uint16_t* HostRows::stage(cudaStream_t stream) {
    sent_.hold(stream);
    return memory_.staged;
}

void HostRows::send(const KvView& kv, Rows rows, cudaStream_t stream) {
    sent_.hold(in_.get());  // later tiles may have rows of earlier batches
    staged_.record(stream);
    staged_.hold(out_.get());
    copy_rows({kv.rest_at(rows.seq, 0, rows.pos0), kv.n_ctx}, {memory_.staged, rows.n}, rows.n, kv, out_.get());
    sent_.record(out_.get());
}

// The tile's past comes from the host, whenever the tile is free; the rows of the batch are on the device.
RowTile HostRows::bring(const KvView& kv, Rows rows, int32_t first, cudaStream_t stream) {
    uint16_t* tile = memory_.tile[turn_];
    const int32_t n_tile = memory_.n_tile_pos, end = std::min(first + n_tile, rows.pos0 + rows.n);
    const int32_t n_past = std::clamp(rows.pos0 - first, 0, n_tile);
    if (n_past > 0) {
        free_[turn_].hold(in_.get());
        n_bytes_ += copy_rows({tile, n_tile}, {kv.rest_at(rows.seq, 0, first), kv.n_ctx}, n_past, kv, in_.get());
        here_[turn_].record(in_.get());
        here_[turn_].hold(stream);
    }
    if (first + n_past < end) {
        const int32_t row = first + n_past - rows.pos0;
        copy_rows({tile + n_past * kv.row_values(), n_tile}, {memory_.staged + row * kv.row_values(), rows.n},
                  end - first - n_past, kv, stream);
    }
    return {tile, first, n_tile};
}

void HostRows::let_go(cudaStream_t stream) {
    free_[turn_].record(stream);
    turn_ = 1 - turn_;
}

void HostRows::wait() const { out_.wait(); }

}  // namespace fasa::cuda
