#include "backend/cuda/baselines.h"

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"

namespace fasa::cuda {
namespace {

constexpr int n_thread = 256;

__global__ void __launch_bounds__(n_thread)
    clear_scores_kernel(float* scores, int64_t n_ctx, int32_t first, int32_t n) {
    ptx::start_next();
    ptx::wait_for_previous();
    const int32_t i = static_cast<int32_t>(blockIdx.x * n_thread + threadIdx.x);
    if (i < n) scores[blockIdx.y * n_ctx + first + i] = 0;
}

__global__ void __launch_bounds__(n_thread)
    keep_listed_kernel(float* scores, int64_t n_ctx, int32_t n_pos, Selection selection) {
    ptx::start_next();
    ptx::wait_for_previous();
    const int32_t pos = static_cast<int32_t>(blockIdx.x * n_thread + threadIdx.x), set = blockIdx.y;
    if (pos >= n_pos) return;
    const int32_t* list = selection.positions + int64_t{set} * selection.capacity;
    int32_t low = 0, high = selection.count[set];  // the first entry that is not below pos lies in [low, high]
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (list[middle] < pos) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == selection.count[set] || list[low] != pos) scores[set * n_ctx + pos] = -INFINITY;
}

// A block a set goes through the pages in order: the means that it writes lie before the scores that it has yet to
// read.
__global__ void __launch_bounds__(n_thread)
    average_pages_kernel(float* scores, int64_t n_ctx, int32_t page, int32_t n_pos) {
    ptx::start_next();
    ptx::wait_for_previous();
    float* row = scores + blockIdx.x * n_ctx;
    const int32_t n_page = (n_pos + page - 1) / page;
    for (int32_t first_page = 0; first_page < n_page; first_page += n_thread) {
        const int32_t i = first_page + static_cast<int32_t>(threadIdx.x), first = i * page;
        const int32_t n = i < n_page ? min(page, n_pos - first) : 0;
        float sum = 0;
        for (int32_t j = 0; j < n; ++j) sum += row[first + j];
        __syncthreads();
        if (n > 0) row[i] = sum / static_cast<float>(n);
        __syncthreads();
    }
}

// A block a set, from the list's end: positions are written where the pages have been read.
__global__ void __launch_bounds__(n_thread) expand_pages_kernel(Selection selection, int32_t page, int32_t n_pos) {
    ptx::start_next();
    ptx::wait_for_previous();
    int32_t* list = selection.positions + int64_t{blockIdx.x} * selection.capacity;
    const int32_t count = selection.count[blockIdx.x], n_last = n_pos - list[count - 1] * page;
    __syncthreads();
    for (int32_t end = count; end > 0; end -= n_thread) {
        const int32_t i = end - 1 - static_cast<int32_t>(threadIdx.x), first = i >= 0 ? list[i] * page : 0;
        __syncthreads();
        const int32_t n = i < 0 ? 0 : i + 1 < count ? page : n_last;
        for (int32_t j = 0; j < n; ++j) list[i * page + j] = first + j;
        __syncthreads();
    }
    if (threadIdx.x == 0) selection.count[blockIdx.x] = (count - 1) * page + n_last;
}

__global__ void __launch_bounds__(n_thread)
    bound_queries_kernel(float* bounds, const float* q, int heads, int head_dim) {
    ptx::start_next();
    ptx::wait_for_previous();
    const int d = static_cast<int>(blockIdx.x * n_thread + threadIdx.x), set = blockIdx.y;
    if (d >= head_dim) return;
    float high = 0, low = 0;
    for (int head = set * heads; head < (set + 1) * heads; ++head) {
        const float value = q[int64_t{head} * head_dim + d];
        high += fmaxf(value, 0.0f);
        low += fminf(value, 0.0f);
    }
    float* out = bounds + int64_t{set} * 2 * head_dim + d;
    out[0] = high;
    out[head_dim] = low;
}

// A thread a value, a row of blocks a set.
Launch over_values(const char* name, int64_t n, int n_set, cudaStream_t stream) {
    return {.name = name,
            .grid = dim3(static_cast<unsigned>((n + n_thread - 1) / n_thread), static_cast<unsigned>(n_set)),
            .block = dim3(n_thread),
            .stream = stream};
}

// A block a set.
Launch over_sets(const char* name, int n_set, cudaStream_t stream) {
    return {.name = name, .grid = dim3(static_cast<unsigned>(n_set)), .block = dim3(n_thread), .stream = stream};
}

}  // namespace

void clear_scores(float* scores, int n_set, int64_t n_ctx, int32_t first, int32_t n, cudaStream_t stream) {
    launch(over_values("clear_scores", n, n_set, stream), clear_scores_kernel, scores, n_ctx, first, n);
}

void keep_listed(float* scores, int64_t n_ctx, int32_t n_pos, const Selection& selection, cudaStream_t stream) {
    launch(over_values("keep_listed", n_pos, selection.n_set, stream), keep_listed_kernel, scores, n_ctx, n_pos,
           selection);
}

void average_pages(float* scores, int n_set, int64_t n_ctx, int32_t page, int32_t n_pos, cudaStream_t stream) {
    launch(over_sets("average_pages", n_set, stream), average_pages_kernel, scores, n_ctx, page, n_pos);
}

void expand_pages(Selection& selection, int32_t page, int32_t n_pos, cudaStream_t stream) {
    launch(over_sets("expand_pages", selection.n_set, stream), expand_pages_kernel, selection, page, n_pos);
}

void bound_queries(float* bounds, int n_set, const float* q, int n_head, int head_dim, cudaStream_t stream) {
    launch(over_values("bound_queries", head_dim, n_set, stream), bound_queries_kernel, bounds, q, n_head / n_set,
           head_dim);
}

}  // namespace fasa::cuda
