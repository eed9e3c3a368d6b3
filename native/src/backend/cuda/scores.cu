#include "backend/cuda/scores.h"

#include <algorithm>

#include "backend/cuda/coded_rows.cuh"
#include "backend/cuda/coded_scores.h"
#include "backend/cuda/dominant_rows.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/score_task.cuh"
#include "base/error.h"

namespace fasa::cuda {
namespace {

using namespace scoring;

constexpr int n_step = 8;              // rows that a lane works on at a time
constexpr int n_resident = 3;          // see ScoreKernel
constexpr int row_alignment = 32;      // a block's rows begin where a 128-byte line of scores does
constexpr int n_multiprocessor = 132;  // of the largest GPUs; smaller ones run the blocks in turns

__global__ void __launch_bounds__(n_thread) sum_queries_kernel(float* out, SetQueries queries, int head_dim) {
    ptx::start_next();
    ptx::wait_for_previous();
    const int d = blockIdx.x * n_thread + threadIdx.x, set = blockIdx.y;
    if (d < head_dim) out[int64_t{set} * head_dim + d] = summed_query(queries, head_dim, set, d);
}

template <int width>
struct Halves {
    uint16_t value[width];
};
template <>
struct alignas(16) Halves<8> {
    uint16_t value[8];
};
template <>
struct alignas(8) Halves<4> {
    uint16_t value[4];
};
template <>
struct alignas(4) Halves<2> {
    uint16_t value[2];
};

// Rows of any shape, the rest of the key included where it counts: chunks of `width` dims, each aligned to its size.
template <int lanes_, int width>
struct AnyRows {
    static constexpr int lanes = lanes_;
    using Loaded = int64_t;

    Keys keys;
    int part;
    int32_t n_rest;  // dims read from the rest of the key
    const float* q;  // shared memory, [n_dom + n_rest]

    __device__ AnyRows(const Keys& head_keys, int lane_part, bool whole_key)
        : keys(head_keys), part(lane_part), n_rest(whole_key ? head_keys.n_rest : 0) {}

    __device__ void set_query(const SetQueries& queries, int head_dim, int set, float* shared) {
        for (int d = threadIdx.x; d < keys.n_dom + n_rest; d += n_thread) {
            shared[d] = summed_query(queries, head_dim, set, d);
        }
        q = shared;
        __syncthreads();
    }
    __device__ Loaded load(int64_t pos) const { return pos; }
    __device__ float dot(Loaded pos) const {
        const float dominant = dot(keys.dom + pos * keys.n_dom, q, keys.n_dom);
        return dominant + dot(keys.rest + pos * keys.row_values, q + keys.n_dom, n_rest);
    }

   private:
    __device__ float dot(const uint16_t* key, const float* query, int n_dims) const {
        float sum = 0;
        for (int d = part * width; d < n_dims; d += lanes * width) {
            const auto k = *reinterpret_cast<const Halves<width>*>(key + d);
#pragma unroll
            for (int i = 0; i < width; ++i) {
                sum = fmaf(query[d + i], __half2float(__ushort_as_half(k.value[i])), sum);
            }
        }
        return sum;
    }
};

// Scores of rows spread over the whole past, then the bins that suit them; the same in all blocks of a set.
template <class Rows>
__device__ Bins find_bins(const Rows& rows, const Ranked& ranked, int warp, int lane, float* sample) {
    constexpr int n_group = 32 / Rows::lanes;  // rows that a warp takes at a time
    for (int first = warp * n_group; first < n_rank_sample; first += n_warp * n_group) {
        const int i = first + lane / Rows::lanes;
        float sum = ranked.end > ranked.first ? rows.dot(rows.load(ranked.sample(i))) : 0.0f;
#pragma unroll
        for (int bit = 1; bit < Rows::lanes; bit *= 2) sum += __shfl_xor_sync(full_warp, sum, bit);
        if (lane % Rows::lanes == 0) sample[i] = sum;
    }
    __syncthreads();
    return bins_for(sample[lane], sample[lane + 32]);
}

template <class Rows>
__device__ void score_rows(const ScoreTask& task, Rows& rows, float* shared_query, uint32_t* counts, float* sample) {
    constexpr int n_group = 32 / Rows::lanes, n_batch = n_group * n_step;  // rows of a warp at a time
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, set = blockIdx.y;
    const int32_t n_pos = n_past(task.past);
    const int32_t share = (n_pos + gridDim.x * row_alignment - 1) / (gridDim.x * row_alignment) * row_alignment;
    const int64_t begin = int64_t{share} * blockIdx.x, end = begin + share < n_pos ? begin + share : n_pos;
    int64_t at = begin + warp * n_batch;
    typename Rows::Loaded keys[n_step];
    const auto row_of = [&](int64_t first, int i) { return first + i * n_group + lane / Rows::lanes; };
    const auto load = [&](int64_t first) {
#pragma unroll
        for (int i = 0; i < n_step; ++i) {
            const int64_t pos = row_of(first, i);
            keys[i] = rows.load(pos < end ? pos : end - 1);
        }
    };

    const bool is_old = at + n_batch + old_distance <= end;
    if (is_old) load(at);
    ptx::start_next();
    ptx::wait_for_previous();
    rows.set_query(task.queries, task.kv.head_dim, set, shared_query);

    const Ranked ranked(task.count.budget, n_pos);
    Bins bins = {};
    if (task.counted) {
        clear_counts(counts);
        bins = find_bins(rows, ranked, warp, lane, sample);
        if (blockIdx.x == 0 && threadIdx.x == 0) task.count.scratch.bins[set] = bins;
    }

    const Counter counter(task, ranked, bins, counts);
    float* scores = task.scores + set * task.row_stride;
    if (!is_old && at < end) load(at);
    while (at < end) {
        float sum[n_step];
#pragma unroll
        for (int i = 0; i < n_step; ++i) sum[i] = rows.dot(keys[i]);
        const int64_t first = at;
        at += n_warp * n_batch;
        if (at < end) load(at);
        add_parts<Rows::lanes>(sum, lane);

        constexpr int n_whole = n_step > Rows::lanes ? n_step / Rows::lanes : 1;
        const int part = lane % Rows::lanes;
#pragma unroll
        for (int j = 0; j < n_whole; ++j) {
            const int64_t pos = row_of(first, j * Rows::lanes + part);
            if (part >= n_step || pos >= end) continue;
            scores[pos] = sum[j];
            counter.count(static_cast<int32_t>(pos), sum[j]);
        }
    }
    finish_counts(task, counts);
}

template <int lanes>
__global__ void __launch_bounds__(n_thread, n_resident) dominant_scores_kernel(ScoreTask task) {
    __shared__ uint32_t counts[n_rank_bin];
    __shared__ float sample[n_rank_sample];
    DominantRows<lanes> rows(keys_of(task, blockIdx.y), threadIdx.x % lanes);
    score_rows(task, rows, nullptr, counts, sample);
}

__global__ void __launch_bounds__(n_thread, n_resident) any_codes_kernel(ScoreTask task) {
    __shared__ uint32_t counts[n_rank_bin];
    __shared__ float sample[n_rank_sample];
    FASA_DYNAMIC_SHARED(query);
    AnyCodes rows(keys_of(task, blockIdx.y), threadIdx.x % AnyCodes::lanes);
    score_rows(task, rows, reinterpret_cast<float*>(query), counts, sample);
}

template <int lanes, int width>
__global__ void __launch_bounds__(n_thread, n_resident) any_scores_kernel(ScoreTask task) {
    __shared__ uint32_t counts[n_rank_bin];
    __shared__ float sample[n_rank_sample];
    FASA_DYNAMIC_SHARED(query);
    AnyRows<lanes, width> rows(keys_of(task, blockIdx.y), threadIdx.x % lanes, task.whole_key);
    score_rows(task, rows, reinterpret_cast<float*>(query), counts, sample);
}

using Kernel = decltype(ScoreKernel::kernel);

// The narrowest group of lanes that holds n chunks.
int lanes_for(int n_chunk) {
    int lanes = 1;
    while (lanes < 32 && lanes < n_chunk) lanes *= 2;
    return lanes;
}

Kernel dominant_kernel(int lanes) {
    switch (lanes) {
        case 1:
            return dominant_scores_kernel<1>;
        case 2:
            return dominant_scores_kernel<2>;
        case 4:
            return dominant_scores_kernel<4>;
        case 8:
            return dominant_scores_kernel<8>;
        case 16:
            return dominant_scores_kernel<16>;
        default:
            return dominant_scores_kernel<32>;
    }
}

template <int width>
Kernel any_kernel(int lanes) {
    return lanes <= 4    ? any_scores_kernel<4, width>
           : lanes <= 16 ? any_scores_kernel<16, width>
                         : any_scores_kernel<32, width>;
}

ScoreKernel choose_kernel(const KvView& kv, bool whole_key) {
    // Whose `lanes` lanes share a row, and who put the query into shared memory where it does not fit their registers.
    const auto by_lanes = [&](Kernel kernel, int lanes) {
        return ScoreKernel{kernel, n_step * 32 / lanes, n_resident, kv.head_dim * sizeof(float)};
    };
    if (kv.is_coded() && !whole_key) {
        const ScoreKernel tiles = coded_scores(kv);
        return tiles.kernel ? tiles : by_lanes(any_codes_kernel, AnyCodes::lanes);
    }
    const int n_rest = whole_key ? kv.head_dim - kv.n_dom : 0;
    const auto divides = [&](int width) {
        const bool dom = kv.n_dom % width == 0 && reinterpret_cast<uintptr_t>(kv.dom) % (2 * width) == 0;
        const bool rest = kv.row_values() % width == 0 && reinterpret_cast<uintptr_t>(kv.rest) % (2 * width) == 0;
        return dom && (n_rest == 0 || (rest && n_rest % width == 0));
    };
    if (n_rest == 0 && divides(8) && kv.n_dom <= 256) {
        const int lanes = lanes_for(kv.n_dom / 8);
        return by_lanes(dominant_kernel(lanes), lanes);
    }
    const int width = divides(8) ? 8 : divides(4) ? 4 : divides(2) ? 2 : 1;
    const int wanted = lanes_for(std::max(kv.n_dom, n_rest) / width), lanes = wanted <= 4 ? 4 : wanted <= 16 ? 16 : 32;
    return by_lanes(width == 8   ? any_kernel<8>(lanes)
                    : width == 4 ? any_kernel<4>(lanes)
                    : width == 2 ? any_kernel<2>(lanes)
                                 : any_kernel<1>(lanes),
                    lanes);
}

void check_queries(const SetQueries& queries) {
    if (queries.n_set < 1 || queries.n_head % queries.n_set != 0) {
        fail(FASA_ERROR_ARGUMENT, "%d heads cannot form %d sets of equal size", queries.n_head, queries.n_set);
    }
}

}  // namespace

void sum_queries(float* out, const SetQueries& queries, int head_dim, cudaStream_t stream) {
    check_queries(queries);
    launch({.name = "sum_queries",
            .grid = dim3(static_cast<unsigned>((head_dim + n_thread - 1) / n_thread), queries.n_set),
            .block = dim3(n_thread),
            .stream = stream,
            .overlap = true},
           sum_queries_kernel, out, queries, head_dim);
}

void token_scores(float* scores, const SetQueries& queries, const KvView& kv, const Past& past, bool whole_key,
                  const CountFor* count, cudaStream_t stream) {
    check_queries(queries);
    const ScoreKernel chosen = choose_kernel(kv, whole_key);
    const int rows_at_once = n_warp * chosen.n_batch, max_blocks = chosen.n_resident * n_multiprocessor;
    const int n_block =
        std::clamp((past.n_pos_max + rows_at_once - 1) / rows_at_once, 1, std::max(1, max_blocks / queries.n_set));
    ScoreTask task = {scores, kv.n_ctx, queries, kv, past, whole_key, false, {}};
    if (count) {
        task.counted = counts_first(past.n_pos_max);
        task.count = *count;
    }
    if (chosen.shared_bytes > 32 * 1024) allow_shared(chosen.kernel, chosen.shared_bytes, "token_scores");
    launch({.name = "token_scores",
            .grid = dim3(static_cast<unsigned>(n_block), queries.n_set),
            .block = dim3(n_thread),
            .shared_bytes = chosen.shared_bytes,
            .stream = stream,
            .overlap = true},
           chosen.kernel, task);
}

}  // namespace fasa::cuda
