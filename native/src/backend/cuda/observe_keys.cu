// Summaries of keys: bounds of pages, and how much a key repeats others.
#include "backend/cuda/keys.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/observe.h"
#include "backend/cuda/rank.cuh"

namespace fasa::cuda {
namespace {

// ---- page_bounds ----------------------------------------------------------------------------------------------------

constexpr int n_page_thread = 128;

__device__ uint16_t half_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }

// A block sums up one page of one head. A NaN is no bound, but spoils a mean.
__global__ void __launch_bounds__(n_page_thread)
    page_bounds_kernel(uint16_t* bounds, KvView kv, Past past, int32_t page, int32_t first_page, PageBounds kind) {
    const int32_t n_pos = n_past(past), head_kv = blockIdx.y;
    const int64_t i = (first_page < 0 ? (n_pos - 1) / page : first_page) + int64_t{blockIdx.x};
    const int64_t begin = i * page, end = begin + page < n_pos ? begin + page : n_pos;
    if (begin >= end) return;
    const Keys keys(kv, seq_of(past), head_kv, kv.n_head_kv);
    const int64_t n_page_max = (kv.n_ctx + page - 1) / page;
    uint16_t* out = bounds + (head_kv * n_page_max + i) * 2 * kv.head_dim;
    for (int d = threadIdx.x; d < kv.head_dim; d += n_page_thread) {
        float high = -INFINITY, low = INFINITY;
        double sum = 0, squares = 0;
#pragma unroll 4
        for (int64_t pos = begin; pos < end; ++pos) {
            const float key = keys.value(pos, d);
            high = high < key ? key : high;
            low = key < low ? key : low;
            sum += key;
            squares += double{key} * key;
        }
        if (kind == PageBounds::mean_std) {
            const double n = static_cast<double>(end - begin), mean = sum / n;
            const double variance = squares / n - mean * mean, deviation = sqrt(variance > 0 ? variance : 0.0);
            high = static_cast<float>(mean + deviation);
            low = static_cast<float>(mean - deviation);
        }
        out[d] = half_bits(high);
        out[kv.head_dim + d] = half_bits(low);
    }
}

// ---- key_similarity -------------------------------------------------------------------------------------------------

constexpr int n_warp = 8, n_thread = 32 * n_warp;

__device__ double warp_sum(double x) {
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) x += __shfl_xor_sync(full_warp, x, bit);
    return x;
}

// The mean over all pairs is one product with the sum of the unit keys, less a key's product with itself. Here come the
// inverse lengths of the keys, in the place of their similarities, and the sum over a part of the positions.
__global__ void __launch_bounds__(n_thread) key_sums_kernel(float* similarity, KvView kv, Past past, float* key_sum) {
    FASA_DYNAMIC_SHARED(memory);
    float* sums = reinterpret_cast<float*>(memory);  // [n_warp][head_dim]
    const int part = blockIdx.x, head_kv = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int head_dim = kv.head_dim;
    const int32_t n_pos = n_past(past), share = (n_pos + n_key_part - 1) / n_key_part,
                  end = min(n_pos, (part + 1) * share);
    const Keys keys(kv, seq_of(past), head_kv, kv.n_head_kv);
    float* sum = sums + warp * head_dim;
    for (int d = lane; d < head_dim; d += 32) sum[d] = 0;
    for (int32_t pos = part * share + warp; pos < end; pos += n_warp) {
        double squares = 0;
        for (int d = lane; d < head_dim; d += 32) {
            const double key = keys.value(pos, d);
            squares += key * key;
        }
        const float length = static_cast<float>(sqrt(warp_sum(squares))), inverse = length > 0 ? 1 / length : 0.0f;
        for (int d = lane; d < head_dim; d += 32) sum[d] += keys.value(pos, d) * inverse;
        if (lane == 0) similarity[int64_t{head_kv} * kv.n_ctx + pos] = inverse;
    }
    __syncthreads();
    for (int d = threadIdx.x; d < head_dim; d += n_thread) {
        float all = 0;
        for (int i = 0; i < n_warp; ++i) all += sums[i * head_dim + d];
        key_sum[(int64_t{head_kv} * n_key_part + part) * head_dim + d] = all;
    }
}

__global__ void __launch_bounds__(n_thread)
    key_similarity_kernel(float* similarity, KvView kv, Past past, const float* key_sum) {
    FASA_DYNAMIC_SHARED(memory);
    float* sum = reinterpret_cast<float*>(memory);  // [head_dim]
    const int part = blockIdx.x, head_kv = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int head_dim = kv.head_dim;
    const int32_t n_pos = n_past(past), share = (n_pos + n_key_part - 1) / n_key_part,
                  end = min(n_pos, (part + 1) * share);
    const Keys keys(kv, seq_of(past), head_kv, kv.n_head_kv);
    for (int d = threadIdx.x; d < head_dim; d += n_thread) {
        float all = 0;
        for (int i = 0; i < n_key_part; ++i) all += key_sum[(int64_t{head_kv} * n_key_part + i) * head_dim + d];
        sum[d] = all;
    }
    __syncthreads();
    for (int32_t pos = part * share + warp; pos < end; pos += n_warp) {
        float dot = 0;
        for (int d = lane; d < head_dim; d += 32) dot = fmaf(sum[d], keys.value(pos, d), dot);
        dot = warp_sum(dot);
        if (lane > 0) continue;
        float* out = similarity + int64_t{head_kv} * kv.n_ctx + pos;
        const float inverse = *out, others = inverse * dot - (inverse > 0 ? 1.0f : 0.0f);
        *out = n_pos > 1 ? others / static_cast<float>(n_pos - 1) : 0.0f;
    }
}

}  // namespace

void page_bounds(uint16_t* bounds, const KvView& kv, const Past& past, int32_t page, int32_t first_page,
                 PageBounds kind, cudaStream_t stream) {
    const int32_t n_page = first_page < 0 ? 1 : (past.n_pos_max + page - 1) / page - first_page;
    if (n_page < 1) return;
    launch({.name = "page_bounds",
            .grid = dim3(static_cast<unsigned>(n_page), static_cast<unsigned>(kv.n_head_kv)),
            .block = dim3(n_page_thread),
            .stream = stream},
           page_bounds_kernel, bounds, kv, past, page, first_page, kind);
}

void key_similarity(float* similarity, const KvView& kv, const Past& past, const ObserveScratch& scratch,
                    cudaStream_t stream) {
    const size_t key_bytes = static_cast<size_t>(kv.head_dim) * sizeof(float);
    Launch how = {.name = "key_sums",
                  .grid = dim3(n_key_part, static_cast<unsigned>(kv.n_head_kv)),
                  .block = dim3(n_thread),
                  .shared_bytes = n_warp * key_bytes,
                  .stream = stream};
    launch(how, key_sums_kernel, similarity, kv, past, scratch.key_sum);
    how.name = "key_similarity";
    how.shared_bytes = key_bytes;
    launch(how, key_similarity_kernel, similarity, kv, past, scratch.key_sum);
}

}  // namespace fasa::cuda
