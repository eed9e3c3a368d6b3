#include "backend/cuda/observe.h"

#include <algorithm>

#include "backend/cuda/keys.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/rank.cuh"
#include "base/error.h"

namespace fasa::cuda {
namespace {

// ---- softmax, piece by piece: x the largest score so far, y the sum of exp(score - x) -------------------------------

__device__ float2 no_scores() { return make_float2(-INFINITY, 0.0f); }

// Scores of infinity do not count, as on the CPU; NaN spoils the sum.
__device__ void fold(float2& state, float score) {
    if (score != score) state = make_float2(fmaxf(state.x, -1e38f), score);
    const float top = score > state.x ? score : state.x;
    if (fabsf(top) == INFINITY) return;
    state.y = state.y * expf(state.x - top) + expf(score - top);
    state.x = top;
}

__device__ float2 merged(float2 a, float2 b) {
    const float top = fmaxf(a.x, b.x);
    if (top == -INFINITY) return no_scores();
    return make_float2(top, a.y * expf(a.x - top) + b.y * expf(b.x - top));
}

__device__ float2 merged_with_lane(float2 state, int bit) {
    return merged(state,
                  make_float2(__shfl_xor_sync(full_warp, state.x, bit), __shfl_xor_sync(full_warp, state.y, bit)));
}

__device__ float log_sum(float2 state) { return state.x + logf(state.y); }

// ---- attention_mass -------------------------------------------------------------------------------------------------

constexpr int n_thread = 256;
constexpr int tile = 64;                            // queries and keys of a block at a time
constexpr int tile_dims = 32, tile_row = tile + 4;  // dims in shared memory; the padding keeps float4 aligned
constexpr int n_mine = 4;                           // queries and keys of a thread
constexpr int n_across = tile / n_mine;             // threads that share a query, or a key
constexpr int wanted_blocks = 264;                  // two a multiprocessor on the largest GPUs

struct MassTask {
    float* mass;
    const float* q;
    float scale;
    int n_head, n_set;
    KvView kv;
    Rows rows;
    float2* softmax;  // [n_set][n_tile][n_split][tile]
    int n_tile, n_split;

    __device__ int heads() const { return n_head / n_set; }
    // Query i of a set is that of row i / heads().
    __device__ int n_query() const { return rows.n * heads(); }
    __device__ int32_t n_visible(int query) const { return rows.pos0 + query / heads() + 1; }
    __device__ float2* softmax_at(int set, int query_tile, int split) const {
        return softmax + ((int64_t{set} * n_tile + query_tile) * n_split + split) * tile;
    }
};

struct Tiles {
    float q[tile_dims][tile_row], k[tile_dims][tile_row];
};

// Products of a tile of queries and a tile of keys: thread (across, down) has queries n_mine * down and keys
// n_mine * across and following. What lies past n_query or n_key is 0.
__device__ void multiply(const MassTask& task, const Keys& keys, int set, int first_query, int32_t first_key,
                         int32_t n_key, Tiles& t, float (&score)[n_mine][n_mine]) {
    const int across = threadIdx.x % n_across, down = threadIdx.x / n_across;
    const int row = threadIdx.x % tile, part = threadIdx.x / tile;  // of what the thread loads
    constexpr int n_load = tile_dims * tile / n_thread;
    const int head_dim = task.kv.head_dim, query = first_query + row;
    const bool has_query = query < task.n_query(), has_key = row < n_key;
    const int64_t head = int64_t{query / task.heads()} * task.n_head + set * task.heads() + query % task.heads();
    const float* q = task.q + head * head_dim;
#pragma unroll
    for (int a = 0; a < n_mine; ++a) {
#pragma unroll
        for (int b = 0; b < n_mine; ++b) score[a][b] = 0;
    }
    for (int first_dim = 0; first_dim < head_dim; first_dim += tile_dims) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < n_load; ++i) {
            const int at = part * n_load + i, d = first_dim + at;
            t.q[at][row] = has_query && d < head_dim ? q[d] * task.scale : 0.0f;
            t.k[at][row] = has_key && d < head_dim ? keys.value(first_key + row, d) : 0.0f;
        }
        __syncthreads();
#pragma unroll 8
        for (int d = 0; d < tile_dims; ++d) {
            const float4 a4 = *reinterpret_cast<const float4*>(&t.q[d][down * n_mine]);
            const float4 b4 = *reinterpret_cast<const float4*>(&t.k[d][across * n_mine]);
            const float a[n_mine] = {a4.x, a4.y, a4.z, a4.w}, b[n_mine] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
            for (int i = 0; i < n_mine; ++i) {
#pragma unroll
                for (int j = 0; j < n_mine; ++j) score[i][j] = fmaf(a[i], b[j], score[i][j]);
            }
        }
    }
}

// A block folds every n_split-th tile of keys for a tile of queries.
__global__ void __launch_bounds__(n_thread) mass_sums_kernel(MassTask task) {
    __shared__ Tiles tiles;
    const int query_tile = blockIdx.x, split = blockIdx.y, set = blockIdx.z;
    const int across = threadIdx.x % n_across, down = threadIdx.x / n_across;
    const int first_query = query_tile * tile, last_query = min(first_query + tile, task.n_query()) - 1;
    const Keys keys(task.kv, task.rows.seq, set, task.n_set);
    float2 state[n_mine];
#pragma unroll
    for (int a = 0; a < n_mine; ++a) state[a] = no_scores();
    for (int32_t first_key = split * tile, end = task.n_visible(last_query); first_key < end;
         first_key += task.n_split * tile) {
        float score[n_mine][n_mine];
        multiply(task, keys, set, first_query, first_key, end - first_key, tiles, score);
#pragma unroll
        for (int a = 0; a < n_mine; ++a) {
            const int32_t n_visible = task.n_visible(first_query + down * n_mine + a);
#pragma unroll
            for (int b = 0; b < n_mine; ++b) {
                const int32_t pos = first_key + across * n_mine + b;
                if (pos < n_visible && pos < end) fold(state[a], score[a][b]);
            }
        }
    }
    float2* out = task.softmax_at(set, query_tile, split);
#pragma unroll
    for (int a = 0; a < n_mine; ++a) {
        float2 all = state[a];
#pragma unroll
        for (int bit = 1; bit < n_across; bit *= 2) all = merged_with_lane(all, bit);
        if (across == 0) out[down * n_mine + a] = all;
    }
}

// A block adds all weights that its tile of keys is given.
__global__ void __launch_bounds__(n_thread) mass_weights_kernel(MassTask task) {
    __shared__ Tiles tiles;
    __shared__ float log_sums[tile];
    const int set = blockIdx.y, across = threadIdx.x % n_across, down = threadIdx.x / n_across;
    const int32_t first_key = blockIdx.x * tile, n_key = task.n_visible(task.n_query() - 1) - first_key;
    const Keys keys(task.kv, task.rows.seq, set, task.n_set);
    const int first_tile = max(0, first_key - task.rows.pos0) * task.heads() / tile;
    float weight[n_mine] = {};
    for (int query_tile = first_tile; query_tile < task.n_tile; ++query_tile) {
        const int first_query = query_tile * tile;
        float score[n_mine][n_mine];
        multiply(task, keys, set, first_query, first_key, n_key, tiles, score);
        if (threadIdx.x < tile) {
            float2 all = no_scores();
            for (int i = 0; i < task.n_split; ++i) all = merged(all, task.softmax_at(set, query_tile, i)[threadIdx.x]);
            log_sums[threadIdx.x] = log_sum(all);
        }
        __syncthreads();
#pragma unroll
        for (int a = 0; a < n_mine; ++a) {
            const int query = first_query + down * n_mine + a;
            if (query >= task.n_query()) break;
            const int32_t n_visible = task.n_visible(query);
#pragma unroll
            for (int b = 0; b < n_mine; ++b) {
                if (first_key + across * n_mine + b < n_visible) {
                    weight[b] += expf(score[a][b] - log_sums[down * n_mine + a]);
                }
            }
        }
    }
    float(*parts)[tile_row] = tiles.q;  // [n_across][tile]
    __syncthreads();
#pragma unroll
    for (int b = 0; b < n_mine; ++b) parts[down][across * n_mine + b] = weight[b];
    __syncthreads();
    if (threadIdx.x < tile && static_cast<int32_t>(threadIdx.x) < n_key) {
        float sum = 0;
        for (int i = 0; i < n_across; ++i) sum += parts[i][threadIdx.x];
        task.mass[int64_t{set} * task.kv.n_ctx + first_key + threadIdx.x] += sum;
    }
}

int64_t tiles_of(int64_t n_query) { return (n_query + tile - 1) / tile; }

void mass_of_rows(MassTask task, cudaStream_t stream) {
    const int64_t n_key_tile = tiles_of(task.rows.pos0 + task.rows.n);
    task.n_tile = static_cast<int>(tiles_of(int64_t{task.rows.n} * (task.n_head / task.n_set)));
    task.n_split =
        static_cast<int>(std::clamp<int64_t>(wanted_blocks / (int64_t{task.n_tile} * task.n_set), 1, n_key_tile));
    const unsigned n_set = static_cast<unsigned>(task.n_set);
    launch({.name = "mass_sums",
            .grid = dim3(static_cast<unsigned>(task.n_tile), static_cast<unsigned>(task.n_split), n_set),
            .block = dim3(n_thread),
            .stream = stream},
           mass_sums_kernel, task);
    launch({.name = "mass_weights",
            .grid = dim3(static_cast<unsigned>(n_key_tile), n_set),
            .block = dim3(n_thread),
            .stream = stream},
           mass_weights_kernel, task);
}

// ---- selected_mass --------------------------------------------------------------------------------------------------

constexpr int n_list_thread = 512, n_list_warp = n_list_thread / 32;
constexpr int n_together = 8;  // heads that are scored together, and lanes that share a key: lane i ends with head i's

struct ListTask {
    float* mass;
    const float* q;
    float scale;
    int n_head;
    KvView kv;
    Past past;
    Selection selection;
};

// The score of the lane's own head; q [n_together][head_dim].
__device__ float score_of(const Keys& keys, const float* q, int head_dim, int64_t pos, int part) {
    float sum[n_together] = {};
    for (int d = part; d < head_dim; d += n_together) {
        const float k = keys.value(pos, d);
#pragma unroll
        for (int h = 0; h < n_together; ++h) sum[h] = fmaf(q[h * head_dim + d], k, sum[h]);
    }
    float mine = 0;
#pragma unroll
    for (int h = 0; h < n_together; ++h) {
        float all = sum[h];
#pragma unroll
        for (int bit = 1; bit < n_together; bit *= 2) all += __shfl_xor_sync(full_warp, all, bit);
        if (h == part) mine = all;
    }
    return mine;
}

__global__ void __launch_bounds__(n_list_thread) selected_mass_kernel(ListTask task) {
    FASA_DYNAMIC_SHARED(memory);  // q [n_together][head_dim]
    __shared__ float2 states[n_list_warp][n_together];
    float* q = reinterpret_cast<float*>(memory);
    const int set = blockIdx.x, n_set = gridDim.x, heads = task.n_head / n_set, head_dim = task.kv.head_dim;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = lane % n_together;
    const Keys keys(task.kv, seq_of(task.past), set, n_set);
    const int32_t* list = task.selection.positions + int64_t{set} * task.selection.capacity;
    const int32_t count = task.selection.count[set];
    float* mass = task.mass + int64_t{set} * task.kv.n_ctx;
    constexpr int n_key = 32 / n_together;  // of a warp at a time
    for (int first = 0; first < heads; first += n_together) {
        const int n_here = min(n_together, heads - first);
        __syncthreads();
        for (int i = threadIdx.x; i < n_together * head_dim; i += n_list_thread) {
            q[i] = i < n_here * head_dim ? task.q[int64_t{set * heads + first} * head_dim + i] * task.scale : 0.0f;
        }
        __syncthreads();
        float2 state = no_scores();
        for (int32_t at = warp * n_key; at < count; at += n_list_warp * n_key) {
            const int32_t i = at + lane / n_together;
            const float score = score_of(keys, q, head_dim, list[i < count ? i : at], part);
            if (i < count) fold(state, score);
        }
#pragma unroll
        for (int bit = n_together; bit < 32; bit *= 2) state = merged_with_lane(state, bit);
        if (lane < n_together) states[warp][lane] = state;
        __syncthreads();
        state = no_scores();
        for (int i = 0; i < n_list_warp; ++i) state = merged(state, states[i][part]);
        const float total = log_sum(state);
        for (int32_t at = warp * n_key; at < count; at += n_list_warp * n_key) {
            const int32_t i = at + lane / n_together, pos = list[i < count ? i : at];
            float weight = expf(score_of(keys, q, head_dim, pos, part) - total);
            if (part >= n_here) weight = 0;
#pragma unroll
            for (int bit = 1; bit < n_together; bit *= 2) weight += __shfl_xor_sync(full_warp, weight, bit);
            if (part == 0 && i < count) mass[pos] += weight;
        }
    }
}

void check_sets(int n_head, int n_set) {
    if (n_set < 1 || n_head % n_set != 0) {
        fail(FASA_ERROR_ARGUMENT, "%d heads cannot form %d sets of equal size", n_head, n_set);
    }
}

}  // namespace

ObserveScratch ObserveScratch::take(Arena& arena, const OpsLimits& limits) {
    // A tile for every set's last queries, whatever the sets.
    const int64_t n_tile = tiles_of(int64_t{limits.n_batch} * limits.n_head) + limits.n_head;
    ObserveScratch s;
    s.softmax = arena.take<float2>(static_cast<size_t>(std::max<int64_t>(n_tile, wanted_blocks) * tile));
    s.key_sum = arena.take<float>(size_t{n_key_part} * limits.n_head_kv * limits.head_dim);
    s.n_batch = limits.n_batch;
    return s;
}

void attention_mass(float* mass, int n_set, const float* q, int n_head, float scale, const KvView& kv, const Rows& rows,
                    const ObserveScratch& scratch, cudaStream_t stream) {
    check_sets(n_head, n_set);
    for (int32_t done = 0; done < rows.n; done += scratch.n_batch) {
        const Rows part{rows.seq, rows.pos0 + done, std::min(scratch.n_batch, rows.n - done)};
        const float* part_q = q + int64_t{done} * n_head * kv.head_dim;
        mass_of_rows({mass, part_q, scale, n_head, n_set, kv, part, scratch.softmax, 0, 0}, stream);
    }
}

void selected_mass(float* mass, const float* q, int n_head, float scale, const KvView& kv, const Past& past,
                   const Selection& selection, cudaStream_t stream) {
    check_sets(n_head, selection.n_set);
    launch({.name = "selected_mass",
            .grid = dim3(static_cast<unsigned>(selection.n_set)),
            .block = dim3(n_list_thread),
            .shared_bytes = static_cast<size_t>(n_together) * kv.head_dim * sizeof(float),
            .stream = stream},
           selected_mass_kernel, ListTask{mass, q, scale, n_head, kv, past, selection});
}

}  // namespace fasa::cuda
