#include "backend/cuda/row_cache.h"

#include <algorithm>
#include <vector>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/row_cache.cuh"
#include "base/error.h"

namespace fasa::cuda {
namespace {

constexpr int n_thread = 256, n_warp = n_thread / 32;
constexpr uint32_t never = 0xffffffffu;

// The place of a set whose row was unused for the `rank`-th longest time, rows of this step apart; -1: there is none.
// The lower place first among equals.
__device__ int32_t find_unused(const uint32_t* used, int32_t first, int rank, uint32_t now) {
    uint32_t last_used[n_row_way];
#pragma unroll
    for (int way = 0; way < n_row_way; ++way) last_used[way] = used[first + way];
    for (int i = 0;; ++i) {
        uint32_t least = never;
        int found = -1;
#pragma unroll
        for (int way = 0; way < n_row_way; ++way) {
            if (last_used[way] < least) least = last_used[way], found = way;
        }
        if (found < 0 || least >= now) return -1;
        if (i == rank) return first + found;
#pragma unroll
        for (int way = 0; way < n_row_way; ++way) {
            if (way == found) last_used[way] = never;
        }
    }
}

__device__ void copy_row(uint16_t* to, const uint16_t* from, int32_t n_values) {
    const int lane = threadIdx.x % 32;
    if (n_values % 8 == 0) {
        for (int i = lane; i < n_values / 8; i += 32) {
            reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
        }
    } else {
        for (int i = lane; i < n_values; i += 32) to[i] = from[i];
    }
}

// A block takes in what a KV head of a layer staged, up to n_thread rows at a time, in their order.
__global__ void __launch_bounds__(n_thread) keep_rows(RowCacheView cache, int32_t row_values) {
    __shared__ uint32_t tags[n_thread];
    __shared__ int32_t sets[n_thread], places[n_thread];
    const int thread = threadIdx.x;
    const int64_t head = blockIdx.x, first_row = head * cache.n_row;
    ptx::start_next();
    ptx::wait_for_previous();
    const uint32_t now = cache.now[head];
    uint32_t *tag = cache.tag + first_row, *used = cache.used + first_row;
    uint32_t* staged_tag = cache.staged_tag + head * cache.n_staged;

    for (int32_t first = 0; first < cache.n_staged; first += n_thread) {
        const int32_t i = first + thread;
        const uint32_t mine = i < cache.n_staged ? staged_tag[i] : 0;
        const int32_t set = mine ? set_of_row(mine, cache.n_row) : -1;
        tags[thread] = mine;
        sets[thread] = set;
        __syncthreads();
        // Lists of a KV head may have staged the same row.
        bool is_new = mine && find_row(tag, cache.n_row, mine) < 0;
        int rank = 0;
        for (int j = 0; is_new && j < thread; ++j) {
            if (tags[j] == mine) is_new = false;
            rank += sets[j] == set;
        }
        const int32_t place = is_new ? find_unused(used, set, rank, now) : -1;
        places[thread] = place;
        __syncthreads();
        if (place >= 0) {
            tag[place] = mine;
            used[place] = now;
        }
        if (mine) staged_tag[i] = 0;
        for (int row = thread / 32; row < n_thread; row += n_warp) {
            if (places[row] < 0) continue;
            copy_row(cache.rows + (first_row + places[row]) * row_values,
                     cache.staged + (head * cache.n_staged + first + row) * row_values, row_values);
        }
        __syncthreads();
    }
    if (thread == 0) cache.now[head] = now + 1;
}

// Tags from first to last become nobody's, and so do all that are staged.
__global__ void __launch_bounds__(n_thread)
    forget_rows(RowCacheView cache, uint32_t first, uint32_t last, int64_t n_row, int64_t n_staged) {
    ptx::start_next();
    ptx::wait_for_previous();
    const int64_t stride = int64_t{gridDim.x} * n_thread, begin = int64_t{blockIdx.x} * n_thread + threadIdx.x;
    for (int64_t i = begin; i < n_row; i += stride) {
        if (cache.tag[i] >= first && cache.tag[i] <= last) cache.tag[i] = cache.used[i] = 0;
    }
    for (int64_t i = begin; i < n_staged; i += stride) cache.staged_tag[i] = 0;
}

__global__ void set_steps(uint32_t* now, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) now[i] = 1;
}

}  // namespace

RowCacheView RowCache::take(Arena& arena, const OpsLimits& limits) {
    RowCacheView v;
    if (limits.n_cache_row == 0 || limits.n_host_layer == 0) return v;
    const auto heads = static_cast<size_t>(limits.n_host_layer) * static_cast<size_t>(limits.n_head_kv);
    const auto values = static_cast<size_t>(limits.host_row_values);
    v.n_row = (limits.n_cache_row + n_row_way - 1) / n_row_way * n_row_way;
    v.n_staged = v.n_row / 4;
    v.rows = arena.take<uint16_t>(heads * static_cast<size_t>(v.n_row) * values);
    v.tag = arena.take<uint32_t>(heads * static_cast<size_t>(v.n_row));
    v.used = arena.take<uint32_t>(heads * static_cast<size_t>(v.n_row));
    v.now = arena.take<uint32_t>(heads);
    v.staged = arena.take<uint16_t>(heads * static_cast<size_t>(v.n_staged) * values);
    v.staged_tag = arena.take<uint32_t>(heads * static_cast<size_t>(v.n_staged));
    v.counts = arena.take<unsigned long long>(2 * heads);
    return v;
}

RowCache::RowCache(const OpsLimits& limits, const RowCacheView& memory, cudaStream_t stream)
    : all_(memory),
      n_layer_(limits.n_host_layer),
      n_head_kv_(limits.n_head_kv),
      n_ctx_(limits.n_ctx),
      row_values_(limits.host_row_values) {
    if (int64_t{limits.n_seq} * n_ctx_ >= int64_t{never}) {
        fail(FASA_ERROR_ARGUMENT, "the row cache tells %u positions apart, not %d sequences of %d: set kv_cache_rows=0",
             never, limits.n_seq, n_ctx_);
    }
    launch({.name = "steps of the row cache", .grid = dim3(1), .block = dim3(n_thread), .stream = stream}, set_steps,
           all_.now, n_layer_ * n_head_kv_);
}

RowCacheView RowCache::layer(int32_t host_layer) const {
    const int64_t head = int64_t{host_layer} * n_head_kv_, row = head * all_.n_row, staged = head * all_.n_staged;
    RowCacheView v = all_;
    v.rows += row * row_values_;
    v.tag += row;
    v.used += row;
    v.now += head;
    v.staged += staged * row_values_;
    v.staged_tag += staged;
    v.counts += 2 * head;
    return v;
}

void RowCache::keep(cudaStream_t stream) const {
    launch({.name = "keeping rows",
            .grid = dim3(static_cast<unsigned>(n_layer_ * n_head_kv_)),
            .block = dim3(n_thread),
            .stream = stream,
            .overlap = true},
           keep_rows, all_, row_values_);
}

void RowCache::forget(int32_t seq, int32_t first_pos, cudaStream_t stream) const {
    const uint32_t before = static_cast<uint32_t>(seq) * static_cast<uint32_t>(n_ctx_);
    const int64_t heads = int64_t{n_layer_} * n_head_kv_, n_row = heads * all_.n_row;
    launch({.name = "forgetting rows",
            .grid = dim3(static_cast<unsigned>(std::min<int64_t>((n_row + n_thread - 1) / n_thread, 1024))),
            .block = dim3(n_thread),
            .stream = stream},
           forget_rows, all_, before + static_cast<uint32_t>(first_pos) + 1, before + static_cast<uint32_t>(n_ctx_),
           n_row, heads * all_.n_staged);
}

RowCounts RowCache::counts(cudaStream_t stream) const {
    std::vector<unsigned long long> counts(2 * static_cast<size_t>(n_layer_) * static_cast<size_t>(n_head_kv_));
    check(
        cudaMemcpyAsync(counts.data(), all_.counts, counts.size() * sizeof(counts[0]), cudaMemcpyDeviceToHost, stream),
        "reading counts of rows");
    check(cudaStreamSynchronize(stream), "reading counts of rows");
    RowCounts sum;
    for (size_t i = 0; i < counts.size(); i += 2) {
        sum.hit += counts[i];
        sum.missed += counts[i + 1];
    }
    return sum;
}

}  // namespace fasa::cuda
