#include "backend/cuda/attend_best.h"

#include <algorithm>

#include "backend/cuda/attend_best.cuh"
#include "base/error.h"

namespace fasa::cuda {
namespace {

constexpr float log2_e = 1.4426950408889634f;

struct Kernel {
    int head_dim, lanes;
    size_t tile_bytes;  // of the tiles of a round
    void (*body)(best::Task);
};

template <int head_dim, int lanes>
constexpr Kernel kernel_of = {head_dim, lanes,
                              size_t{best::Tiles<head_dim>::n_slot} * best::Tiles<head_dim>::slot_bytes,
                              best::attend_best<head_dim, lanes>};

const Kernel kernels[] = {
    kernel_of<64, 1>,  kernel_of<64, 2>,  kernel_of<64, 4>,  kernel_of<96, 4>,  kernel_of<128, 1>,
    kernel_of<128, 2>, kernel_of<128, 4>, kernel_of<128, 8>, kernel_of<256, 4>, kernel_of<256, 8>,
};

// The kernel whose lanes hold the dominant dims, 8 each.
const Kernel* kernel_for(const KvView& kv) {
    for (const Kernel& kernel : kernels) {
        if (kernel.head_dim == kv.head_dim && 8 * kernel.lanes >= kv.n_dom && 4 * kernel.lanes < kv.n_dom) {
            return &kernel;
        }
    }
    return nullptr;
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

int32_t share_of(int32_t n_pos, unsigned n_block, int lanes) {
    const int32_t step = std::max(32, best::n_step * 32 / lanes), all = static_cast<int32_t>(n_block) * step;
    return (std::max(n_pos, 1) + all - 1) / all * step;
}

best::Layout layout_of(const Kernel& kernel, int32_t share, int group, int keep) {
    uint32_t at = 0;
    const auto take = [&](size_t n_bytes) {
        const uint32_t here = at;
        at += static_cast<uint32_t>((n_bytes + 127) / 128 * 128);
        return here;
    };
    take(sizeof(cluster::Shared));
    best::Layout layout;
    const size_t n_value = static_cast<size_t>(group * kernel.head_dim) + 4 * cluster::max_blocks;
    layout.merge = take(cluster::max_blocks * best::max_group * sizeof(SoftmaxState) + n_value * sizeof(float));
    layout.mask = take(static_cast<size_t>(share) / 8);
    layout.list = take(static_cast<size_t>(std::min(share, keep)) * sizeof(uint16_t));
    layout.scores = take(static_cast<size_t>(share) * sizeof(float));
    layout.ring = take(std::max<size_t>(kernel.tile_bytes, cluster::n_warp * best::n_stage * best::stage_bytes));
    layout.end = at;
    return layout;
}

// A power of two of blocks a set, such that all sets run at once.
unsigned cluster_for(int n_sm, int n_set) {
    unsigned n = cluster::max_blocks;
    while (n > 1 && n * static_cast<unsigned>(n_set) > static_cast<unsigned>(n_sm)) n /= 2;
    return n;
}

}  // namespace

AttendBest::Scratch AttendBest::Scratch::take(Arena& arena) { return {arena.take<unsigned>(1)}; }

AttendBest::AttendBest(const Gpu& gpu, const Scratch& scratch) : gpu_(gpu), scratch_(scratch) {
    for (const Kernel& kernel : kernels) allow_shared(kernel.body, gpu.shared_bytes, "sparse attention");
}

bool AttendBest::run(const BestTask& t, cudaStream_t stream) const {
    const KvView& kv = t.kv;
    const int n_set = t.queries.n_set, n_head = t.queries.n_head;
    if (n_set < 1 || n_head % n_set != 0 || n_set % kv.n_head_kv != 0 || t.selection.n_set != n_set) {
        fail(FASA_ERROR_ARGUMENT, "attend_best: %d query heads in %d sets (lists: %d) over %d KV heads", n_head, n_set,
             t.selection.n_set, kv.n_head_kv);
    }
    if (t.budget.keep < 1 || t.budget.keep > t.selection.capacity) {
        fail(FASA_ERROR_ARGUMENT, "%d positions are to be kept in lists of %d", t.budget.keep, t.selection.capacity);
    }
    const Kernel* kernel = kernel_for(kv);
    const int group = n_head / n_set;
    const bool is_wide = kv.n_dom % 8 == 0 && is_aligned(kv.dom) && is_aligned(kv.rest);
    if (!kernel || group > best::max_group || !is_wide || t.queries.mask) return false;

    best::Task task = {};
    unsigned n_block = cluster_for(gpu_.n_sm, n_set);
    for (;; n_block /= 2) {
        const int32_t share = share_of(t.past.n_pos_max, n_block, kernel->lanes);
        if (share > cluster::max_share) return false;
        task.layout = layout_of(*kernel, share, group, t.budget.keep);
        if (task.layout.end > gpu_.shared_bytes) return false;
        const unsigned possible = largest_cluster(kernel->body, static_cast<unsigned>(n_set), dim3(cluster::n_thread),
                                                  task.layout.end, n_block);
        if (possible == 0) return false;
        if (possible == n_block) break;
    }
    task.attend = {.y = t.y,
                   .q = t.q,
                   .kv = kv,
                   .step = t.past.step,
                   .selection = t.selection,
                   .n_head = n_head,
                   .group = group,
                   .sets_a_head = n_set / kv.n_head_kv,
                   .n = 1,
                   .n_unit_queries = best::max_group,
                   .scale = t.scale * log2_e,
                   .scratch = {}};
    task.queries = t.queries;
    task.past = t.past;
    task.budget = t.budget;
    task.n_slow = scratch_.n_slow;
    launch({.name = "attend_best",
            .grid = dim3(n_block, static_cast<unsigned>(n_set)),
            .block = dim3(cluster::n_thread),
            .shared_bytes = task.layout.end,
            .stream = stream,
            .overlap = true,
            .cluster = n_block},
           kernel->body, task);
    return true;
}

}  // namespace fasa::cuda
