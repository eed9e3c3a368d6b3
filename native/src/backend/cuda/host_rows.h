// Prefill over a cache whose rows lie in host memory (FASA-M): the rows of a batch go there, and those of its past come
// back a tile at a time, both beside the work of the device, which needs no more memory for a longer context.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/attention_prefill.h"
#include "backend/cuda/runtime.h"
#include "base/buffer.h"

namespace fasa::cuda {

class HostRows {
   public:
    struct Memory {
        uint16_t* staged = nullptr;  // [n_head_kv][rows of a batch][row_values]
        uint16_t* tile[2] = {};      // [n_head_kv][n_tile_pos][row_values]
        int32_t n_tile_pos = 0;      // a multiple of prefill_chunk; 0: no rows lie in host memory

        // A copy of tile_bytes should take much longer than to start it. An empty arena measures.
        static Memory take(Arena& arena, const OpsLimits& limits, size_t tile_bytes = size_t{32} << 20);
    };

    explicit HostRows(const Memory& memory) : memory_(memory) {}
    ~HostRows();

    // Where what follows on the stream is to put the rows of a batch of one layer.
    uint16_t* stage(cudaStream_t stream);
    // Sends them from there to their places in the cache.
    void send(const KvView& kv, Rows rows, cudaStream_t stream);
    // Calls attend for every tile of the positions up to the last of `rows`, which were sent last: what it puts on the
    // stream finds the tile's rows there.
    template <class Attend>
    void for_each_tile(const KvView& kv, Rows rows, cudaStream_t stream, Attend&& attend) {
        const int32_t end = rows.pos0 + rows.n;
        for (int32_t first = 0; first < end; first += memory_.n_tile_pos) {
            const RowTile tile = bring(kv, rows, first, stream);
            const int32_t tile_end = first + tile.n_pos;
            attend(PrefillRange{first, tile_end, tile, first > 0, tile_end >= end});
            let_go(stream);
        }
    }

    // What follows on the stream sees the rows that were sent.
    void settle(cudaStream_t stream) const { sent_.hold(stream); }
    // Until the rows that were sent are where they belong.
    void wait() const;
    // That came to the device so far.
    uint64_t n_bytes() const { return n_bytes_; }

   private:
    RowTile bring(const KvView& kv, Rows rows, int32_t first, cudaStream_t stream);
    void let_go(cudaStream_t stream);

    Memory memory_;
    Stream in_, out_;          // copies to the device, and from it
    Event staged_, sent_;      // the rows of the last batch and layer
    Event here_[2], free_[2];  // of the tiles
    int turn_ = 0;             // the tile to be brought next
    uint64_t n_bytes_ = 0;
};

}  // namespace fasa::cuda
