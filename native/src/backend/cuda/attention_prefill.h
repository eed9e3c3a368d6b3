// Attention of prefill on tensor cores: many rows of one sequence at once, causal, over everything cached.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/runtime.h"
#include "base/buffer.h"

namespace fasa::cuda {

// The softmax of a row runs over chunks of positions that begin at multiples of this, each from a fresh state, and the
// chunks' states are merged in ascending order. So neither the batch that a row comes in, nor whether its chunks are
// worked on one after the other, at once, or in several calls, changes a bit of its result.
inline constexpr int32_t prefill_chunk = 4096;

// Rows of one sequence's cache, of every KV head those of the same positions, that lie elsewhere than in the cache.
struct RowTile {
    const uint16_t* rest = nullptr;  // [n_head_kv][n_pos][row_values]; nullptr: no rows do
    int32_t first = 0, n_pos = 0;    // the position of a head's row 0, and rows from head to head
};

// Which positions a call looks at, and what it begins and ends with. The default is plain attention.
struct PrefillRange {
    int32_t k_first = 0;        // a multiple of prefill_chunk
    int32_t k_end = INT32_MAX;  // a multiple too, unless no later call goes on from here
    RowTile tile = {};          // the rows of these positions, if they are not to be read from the cache
    bool resume = false;        // go on from the state that an earlier call left
    bool finish = true;         // write y; else leave the state: weighted values in y, the rest in scratch
};

// Device memory of all calls on one stream.
struct PrefillScratch {
    float2* stats = nullptr;  // [n_batch][n_head]: base and sum of the state of every row and head
    // States of chunks that are worked on at once: [parts][n][n_head] and [parts][n][n_head][head_dim], as many as fit.
    float2* part_stats = nullptr;
    float* part_values = nullptr;
    int64_t n_part_rows = 0;

    // Takes it from an arena over device memory; an empty arena measures.
    static PrefillScratch take(Arena& arena, const OpsLimits& limits);
};

// Which kernels to take: by what is best on a device, or by what a test is about. Rows give the same bits in all calls
// of the same wide and unaligned.
struct PrefillTuning {
    bool wide = false;       // 32 rows a warp instead of 16: for 160 KiB of shared memory a multiprocessor and more
    bool unaligned = false;  // take the kernels for any n_dom and head_dim though the 128-bit ones could serve
    int n_blocks = 0;        // that run at once; a batch of fewer works on several chunks of positions at once

    static PrefillTuning of_device();
};

// y[i] = softmax(scale q[i] · keys) values over the positions 0 .. step->pos0 + i of sequence step->seq, per head;
// q and y [n][n_head][head_dim], apart from each other, dims of q in the order of the cache; head_dim at most
// max_head_dim, n_head a multiple of n_head_kv, scale > 0. n_pos_max >= step->pos0 + n bounds the launches; all else is
// read on the device. Positions past a row's own do not reach it, whatever they hold. Where head_dim is even and at
// most 256 and n_dom even, q and the weights are rounded to half precision, which moves y by 2e-4 of the values' spread
// at scores of about 1, by 1e-3 at scores of about 10. Scratch: of limits that cover the call. Pointers, kv's included,
// are the device's; q, y and scratch 16-byte aligned.
void attend_prefill(float* y, const float* q, int n_head, float scale, const KvView& kv, const Step* step, int32_t n,
                    int32_t n_pos_max, const PrefillRange& range, const PrefillScratch& scratch,
                    const PrefillTuning& tuning, cudaStream_t stream);

}  // namespace fasa::cuda
