#include "backend/cuda/attend_best.h"

#include <algorithm>
#include <iterator>

#include "backend/cuda/attend_best.cuh"
#include "base/error.h"

namespace fasa::cuda {
namespace {

constexpr float log2_e = 1.4426950408889634f;

struct Kernel {
    int head_dim;
    size_t tile_bytes;  // of the tiles of a round
    void (*body)(best::Task);
};

template <int head_dim>
constexpr Kernel kernel_of = {head_dim, size_t{best::Tiles<head_dim>::n_slot} * best::Tiles<head_dim>::slot_bytes,
                              best::attend_best<head_dim>};

const Kernel kernels[] = {kernel_of<64>, kernel_of<96>, kernel_of<128>, kernel_of<256>};

const Kernel* kernel_for(int32_t head_dim) {
    const auto* found = std::find_if(std::begin(kernels), std::end(kernels),
                                     [&](const Kernel& kernel) { return kernel.head_dim == head_dim; });
    return found == std::end(kernels) ? nullptr : found;
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

int32_t share_of(int32_t n_pos, unsigned n_block) {
    const int32_t all = static_cast<int32_t>(n_block) * 32;
    return (std::max(n_pos, 1) + all - 1) / all * 32;
}

best::Layout layout_of(const Kernel& kernel, int32_t share, int group, const Budget& budget, unsigned n_block,
                       bool is_cached) {
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
    const int32_t n_forced =
        static_cast<int32_t>(std::min(int64_t{budget.keep}, int64_t{budget.n_sink} + budget.n_recent));
    const int32_t n_own = share + (n_forced + static_cast<int32_t>(n_block) - 1) / static_cast<int32_t>(n_block);
    const size_t list_bytes = static_cast<size_t>(std::min(n_own, budget.keep)) * sizeof(int32_t);
    layout.list = take(list_bytes);
    layout.places = take(is_cached ? list_bytes : 0);
    layout.slots = take(kernel.tile_bytes);
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

AttendBest::Choice AttendBest::choose(const BestTask& t) const {
    const KvView& kv = t.kv;
    if (t.n_set < 1 || t.n_head % t.n_set != 0 || t.n_set % kv.n_head_kv != 0 || t.selection.n_set != t.n_set) {
        fail(FASA_ERROR_ARGUMENT, "attend_best: %d query heads in %d sets (lists: %d) over %d KV heads", t.n_head,
             t.n_set, t.selection.n_set, kv.n_head_kv);
    }
    if (t.budget.keep < 1 || t.budget.keep > t.selection.capacity) {
        fail(FASA_ERROR_ARGUMENT, "%d positions are to be kept in lists of %d", t.budget.keep, t.selection.capacity);
    }
    const Kernel* kernel = kernel_for(kv.head_dim);
    const int group = t.n_head / t.n_set;
    const bool is_wide = kv.n_dom % 8 == 0 && is_aligned(kv.dom) && is_aligned(kv.rest);
    if (!kernel || group > best::max_group || !is_wide || kv.n_ctx % 4 != 0) return {};

    for (unsigned n_block = cluster_for(gpu_.n_sm, t.n_set);;) {
        const int32_t share = share_of(t.past.n_pos_max, n_block);
        if (share > cluster::max_share) return {};
        const best::Layout layout = layout_of(*kernel, share, group, t.budget, n_block, t.cache.rows != nullptr);
        if (layout.end > gpu_.shared_bytes) return {};
        const unsigned possible =
            largest_cluster(kernel->body, static_cast<unsigned>(t.n_set), dim3(cluster::n_thread), layout.end, n_block);
        if (possible < 2) return {};  // blocks alone cannot send each other mail
        if (possible == n_block) return {kernel->body, layout, n_block};
        n_block /= 2;
    }
}

void AttendBest::run(const BestTask& t, cudaStream_t stream) const {
    const Choice choice = choose(t);
    if (!choice.body) fail(FASA_ERROR_ARGUMENT, "attend_best: no kernel takes this task");
    best::Task task = {};
    task.layout = choice.layout;
    task.attend = {.y = t.y,
                   .q = t.q,
                   .kv = t.kv,
                   .step = t.past.step,
                   .selection = t.selection,
                   .n_head = t.n_head,
                   .group = t.n_head / t.n_set,
                   .sets_a_head = t.n_set / t.kv.n_head_kv,
                   .n = 1,
                   .n_unit_queries = best::max_group,
                   .scale = t.scale * log2_e,
                   .scratch = {},
                   .cache = t.cache};
    task.scores = t.scores;
    task.n_set = t.n_set;
    task.past = t.past;
    task.budget = t.budget;
    task.n_slow = scratch_.n_slow;
    launch({.name = "attend_best",
            .grid = dim3(choice.n_block, static_cast<unsigned>(t.n_set)),
            .block = dim3(cluster::n_thread),
            .shared_bytes = choice.layout.end,
            .stream = stream,
            .overlap = true,
            .cluster = choice.n_block},
           choice.body, task);
}

}  // namespace fasa::cuda
