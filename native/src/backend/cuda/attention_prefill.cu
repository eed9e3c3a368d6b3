#include "backend/cuda/attention_prefill.h"

#include <algorithm>
#include <cmath>

#include "backend/cuda/attention_prefill_mma.cuh"
#include "backend/cuda/attention_prefill_plain.cuh"
#include "backend/cuda/attention_prefill_state.cuh"
#include "backend/cuda/launch.cuh"
#include "base/error.h"

namespace fasa::cuda {
namespace {

// Rows and heads whose states of chunks scratch has room for: what a large GPU works on at once.
constexpr int64_t max_part_rows = int64_t{264} * 128;

struct Kernel {
    void (*run)(PrefillArgs);
    const char* name;
    int n_rows, n_threads;
    size_t shared_bytes;
};

template <class S>
Kernel mma_kernel(const char* name) {
    return {attend_prefill_mma<S>, name, S::n_rows, S::n_threads, S::shared_bytes};
}

// 32 rows a warp halve the reads of shared memory, and three slots let copies run ahead; two blocks still fit in 227
// KiB, and in the 164 KiB of compute capability 8.0.
template <int dims>
Kernel wide_kernel() {
    return mma_kernel<PrefillShape<dims, 2, 64, 3, true>>("attention of prefill");
}

// Two blocks fit in 100 KiB, one in the 64 KiB of compute capability 7.5.
template <int dims, bool aligned>
Kernel narrow_kernel() {
    return mma_kernel<PrefillShape<dims, 1, 64, 2, aligned>>("attention of prefill, narrow");
}

template <bool aligned>
Kernel narrow_256_kernel() {
    return mma_kernel<PrefillShape<256, 1, 32, 2, aligned>>("attention of prefill, head_dim 256, narrow");
}

Kernel aligned_kernel(int head_dim, bool wide) {
    switch (head_dim) {
        case 64:
            return wide ? wide_kernel<64>() : narrow_kernel<64, true>();
        case 80:
            return wide ? wide_kernel<80>() : narrow_kernel<80, true>();
        case 96:
            return wide ? wide_kernel<96>() : narrow_kernel<96, true>();
        case 128:
            return wide ? wide_kernel<128>() : narrow_kernel<128, true>();
        default:
            // The sums of 32 rows of 256 values would not fit in registers.
            return wide ? mma_kernel<PrefillShape<256, 1, 64, 2, true>>("attention of prefill, head_dim 256")
                        : narrow_256_kernel<true>();
    }
}

bool is_aligned(const KvView& kv, const RowTile& tile) {
    const bool has_kernel =
        kv.head_dim == 64 || kv.head_dim == 80 || kv.head_dim == 96 || kv.head_dim == 128 || kv.head_dim == 256;
    const auto bits = reinterpret_cast<uintptr_t>(kv.dom) | reinterpret_cast<uintptr_t>(kv.rest) |
                      reinterpret_cast<uintptr_t>(tile.rest);
    return has_kernel && kv.n_dom % 8 == 0 && bits % 16 == 0;
}

Kernel choose(const KvView& kv, const RowTile& tile, const PrefillTuning& tuning) {
    if (is_aligned(kv, tile) && !tuning.unaligned) return aligned_kernel(kv.head_dim, tuning.wide);
    const Kernel plain = {attend_prefill_plain, "attention of prefill, plain", plain_warps, 32 * plain_warps, 0};
    if (kv.head_dim % 2 != 0 || kv.n_dom % 2 != 0) return plain;  // the others read pairs
    if (kv.head_dim <= 64) return narrow_kernel<64, false>();
    if (kv.head_dim <= 128) return narrow_kernel<128, false>();
    if (kv.head_dim <= 256) return narrow_256_kernel<false>();
    return plain;
}

void require(int n_head, float scale, const KvView& kv, const PrefillRange& range) {
    if (kv.head_dim < 1 || kv.head_dim > max_head_dim) {
        fail(FASA_ERROR_ARGUMENT, "attention of prefill: head_dim %d with %d dominant dims", kv.head_dim, kv.n_dom);
    }
    if (n_head % kv.n_head_kv != 0 || !(scale > 0)) {
        fail(FASA_ERROR_ARGUMENT, "attention of prefill: %d heads over %d, scale %g", n_head, kv.n_head_kv,
             static_cast<double>(scale));
    }
    if (range.k_first % prefill_chunk != 0) {
        fail(FASA_ERROR_ARGUMENT, "attention of prefill begins at position %d, not at a multiple of %d", range.k_first,
             prefill_chunk);
    }
}

}  // namespace

PrefillScratch PrefillScratch::take(Arena& arena, const OpsLimits& limits) {
    const int64_t n_rows = int64_t{limits.n_batch} * limits.n_head;
    const int64_t n_chunks = (limits.n_ctx + prefill_chunk - 1) / prefill_chunk;
    PrefillScratch s;
    s.n_part_rows = n_chunks > 1 ? std::min(max_part_rows, n_rows * n_chunks) : 0;
    s.stats = arena.take<float2>(static_cast<size_t>(n_rows));
    s.part_stats = arena.take<float2>(static_cast<size_t>(s.n_part_rows));
    s.part_values = arena.take<float>(static_cast<size_t>(s.n_part_rows * limits.head_dim));
    return s;
}

PrefillTuning PrefillTuning::of_device() {
    int device = 0, n_multiprocessors = 0, shared_bytes = 0;
    check(cudaGetDevice(&device), "asking for the device");
    check(cudaDeviceGetAttribute(&n_multiprocessors, cudaDevAttrMultiProcessorCount, device), "asking for its size");
    check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "asking for its shared memory");
    return {shared_bytes >= 160 * 1024, false, 2 * n_multiprocessors};
}

void attend_prefill(float* y, const float* q, int n_head, float scale, const KvView& kv, const Step* step, int32_t n,
                    int32_t n_pos_max, const PrefillRange& range, const PrefillScratch& scratch,
                    const PrefillTuning& tuning, cudaStream_t stream) {
    require(n_head, scale, kv, range);
    const Kernel kernel = choose(kv, range.tile, tuning);
    const int group = n_head / kv.n_head_kv;
    const int32_t n_tiles = (n * group + kernel.n_rows - 1) / kernel.n_rows;
    const int32_t k_end = std::min(range.k_end, n_pos_max);
    const int n_chunks = std::max(0, (k_end - range.k_first + prefill_chunk - 1) / prefill_chunk);
    constexpr float log2_e = 1.44269504088896341f;
    PrefillArgs args = {q,           y,     scratch.stats, step,  kv,         scale * log2_e, n,
                        n_head,      group, range.k_first, k_end, range.tile, false,          range.resume,
                        range.finish};
    Launch how = {kernel.name, dim3(static_cast<unsigned>(n_tiles), static_cast<unsigned>(kv.n_head_kv)),
                  dim3(static_cast<unsigned>(kernel.n_threads)), kernel.shared_bytes, stream};
    if (kernel.shared_bytes > 48 * 1024) allow_shared(kernel.run, kernel.shared_bytes, kernel.name);

    const int64_t n_places = int64_t{n} * n_head;
    const int64_t at_once = std::min({int64_t{tuning.n_blocks} / (int64_t{n_tiles} * kv.n_head_kv), int64_t{n_chunks},
                                      scratch.n_part_rows / n_places});
    if (at_once < 2) return launch(how, kernel.run, args);

    for (int chunk = 0; chunk < n_chunks; chunk += static_cast<int>(at_once)) {
        const int n_parts = static_cast<int>(std::min<int64_t>(at_once, n_chunks - chunk));
        PrefillArgs merge = args;
        merge.k_first = range.k_first + chunk * prefill_chunk;
        merge.resume = range.resume || chunk > 0;
        merge.finish = range.finish && chunk + n_parts == n_chunks;
        PrefillArgs parts = merge;
        parts.values = scratch.part_values;
        parts.stats = scratch.part_stats;
        parts.parts = true;
        parts.resume = parts.finish = false;
        how.grid.z = static_cast<unsigned>(n_parts);
        launch(how, kernel.run, parts);
        const auto n_blocks = static_cast<unsigned>((n_places + plain_warps - 1) / plain_warps);
        launch(Launch{"merge of chunks of attention", dim3(n_blocks), dim3(32 * plain_warps), 0, stream},
               kv.head_dim % 2 == 0 ? merge_prefill_parts<2> : merge_prefill_parts<1>, merge, scratch.part_stats,
               scratch.part_values, n_parts);
    }
}

}  // namespace fasa::cuda
