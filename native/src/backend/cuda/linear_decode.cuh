// The kernel of linear_decode.h. The blocks of a launch, one a multiprocessor, share out the rows of all products. In a
// block, a team of warps takes a row at a time: every thread holds its part of the activations in registers for all
// rows and has the next weight rows under way while it multiplies. A team's warps put their sums into shared memory,
// where they are added up once at the end. No float is added atomically, so results do not vary.
#pragma once

#include <cstdint>

#include "backend/cuda/dot.cuh"
#include "backend/cuda/launch.cuh"
#include "base/dtype.h"

namespace fasa::cuda::decode {

inline constexpr int MAX_PRODUCTS = 4;  // in a launch
inline constexpr int WARP = 32;

struct Product {
    const uint8_t* w;
    int64_t to_up;  // bytes from w to the matrix that w is the gate of
    uint32_t row_bytes;
    const float* bias;
    float* y;
    int64_t n_out;
    DType dtype;
    bool add;
    int first_block, n_blocks;
    int team_warps;  // warps that share a row
    int n_passes;    // times that a team goes over its rows, as it holds only so much of the activations
};

struct Job {
    Product product[MAX_PRODUCTS];
    int n_products;
    Activations a;
    float eps;
    bool glu;        // rows of w and of the matrix it is the gate of, in turns
    int chunk_rows;  // rows of y that a block works on between two meetings of its teams
    int sums_at;     // byte of shared memory where the teams' sums begin
};

// Shared memory begins with the sums of the norm, then the int8 activations if a block makes them, then the teams'
// sums.
inline constexpr int NORM_BYTES = 32 * sizeof(float);

// Warps of a block at most, so that the activations of N rows (1, 2 or 4) and the weights under way fit in registers;
// fewer where the products of a launch have several types.
template <int N>
inline constexpr int max_warps = N > 2   ? 16
                                 : N > 1 ? 20
                                         : 28;
template <int N>
inline constexpr int max_warps_mixed = N > 1 ? 12 : 16;

// Weight rows under way in each thread.
template <DType T>
inline constexpr int rows_ahead = T == FASA_DTYPE_Q8_0 ? 2 : 4;

constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }

// Norms and quantises the row of activations into shared memory; for float weights finds only the norm's scale.
// `weight` is load_four(a.norm, threadIdx.x), fetched ahead, where there is a norm.
template <DType T>
__device__ void prepare(Activations& a, float eps, float4 weight, uint8_t* shared) {
    if (is_float_type<T> || !a.quantized.q) {
        if (a.norm) a.scale = norm_scale<true>(a.x, a.n_in, eps, reinterpret_cast<float*>(shared));
    }
    if constexpr (!is_float_type<T>) {
        if (a.quantized.q) return;
        a.quantized.q = reinterpret_cast<int8_t*>(shared + NORM_BYTES);
        a.quantized.d = reinterpret_cast<float*>(shared + NORM_BYTES + a.n_in);
        const int n_fours = a.n_in / 4, n_threads = static_cast<int>(blockDim.x);
        for (int first = 0; first < n_fours; first += n_threads) {
            const int i = first + static_cast<int>(threadIdx.x);
            float4 v = {0, 0, 0, 0};
            if (i < n_fours) {
                v = load_four(a.x, i);
                if (a.norm) v = normed(v, a.scale, first == 0 ? weight : load_four(a.norm, i));
            }
            const QuantizedFour four = quantize_four(v);
            if (i < n_fours) store_four(a.quantized, i, four);
        }
        __syncthreads();
    }
}

// Where a thread stands: its team takes rows `team`, `team` + n_teams, … of a chunk.
struct Place {
    int team, n_teams;
    int warp, lane;  // of the team, of the warp

    __device__ explicit Place(int team_warps) {
        const int warp_of_block = static_cast<int>(threadIdx.x) / WARP;
        team = warp_of_block / team_warps;
        n_teams = static_cast<int>(blockDim.x) / WARP / team_warps;
        warp = warp_of_block % team_warps;
        lane = static_cast<int>(threadIdx.x) % WARP;
    }
};

// Some rows of a product, of a gate and its mate in turns.
struct Rows {
    const uint8_t* first;
    uint32_t row_bytes;
    int64_t to_up;
    int glu;  // 0 or 1

    __device__ const uint8_t* at(int row) const {
        return first + static_cast<uint64_t>(static_cast<uint32_t>(row >> glu)) * row_bytes +
               ((row & glu) != 0 ? to_up : 0);
    }
};

// What a thread multiplies and where the sums of its warp go.
template <DType T, int N>
struct Worker {
    static constexpr int R = rows_ahead<T>, M = power_of_two(R * N);
    Part<T> weights[R];
    ActivationPart<T, N> x;
    int part, n_parts;
    bool inside;

    // Pass `pass` over the rows; a thread beyond the end of the row reads the last part and its product does not count.
    __device__ Worker(const Place& place, int team_warps, int pass, int n_parts_of_row) : n_parts(n_parts_of_row) {
        part = (pass * team_warps + place.warp) * WARP + place.lane;
        inside = part < n_parts;
        part = min(part, n_parts - 1);
    }

    __device__ void start(const Rows& rows, const Place& place, int n_rows) {
#pragma unroll
        for (int u = 0; u < R; ++u) {
            const int row = place.team + u * place.n_teams;
            if (row < n_rows) weights[u].load(rows.at(row), n_parts, part);
        }
    }

    // sums [n_rows][n_sums][team_warps], to which a later pass adds; here those of N rows of activations.
    __device__ void run(const Rows& rows, const Place& place, int n_rows, int n_sums, float* sums, int team_warps,
                        bool later_pass) {
        for (int row = place.team; row < n_rows; row += R * place.n_teams) {
            float y[M];
#pragma unroll
            for (int u = 0; u < R; ++u) {
                const int this_row = row + u * place.n_teams, next_row = this_row + R * place.n_teams;
                float product[N] = {};
                if (this_row < n_rows) {
                    x.dot(weights[u], part, product);
                    if (next_row < n_rows) weights[u].load(rows.at(next_row), n_parts, part);
                }
#pragma unroll
                for (int j = 0; j < N; ++j) y[u * N + j] = inside ? product[j] : 0.0f;
            }
#pragma unroll
            for (int i = R * N; i < M; ++i) y[i] = 0;
            const float total = sums_of_warp<M>(y, place.lane);
            const int i = place.lane / (WARP / M), j = i % N, sum_row = row + i / N * place.n_teams;
            if (place.lane % (WARP / M) == 0 && i < R * N && sum_row < n_rows) {
                float& sum = sums[(sum_row * n_sums + j) * team_warps + place.warp];
                sum = later_pass ? sum + total : total;
            }
        }
    }
};

// y of n_rows rows from `first` on, from the teams' sums.
__device__ inline void finish(const Product& product, int64_t first, int n_rows, bool glu, int n, int n_sums,
                              const float* sums) {
    const auto sum_of = [&](int row, int j) {
        float total = 0;
        for (int w = 0; w < product.team_warps; ++w) total += sums[(row * n_sums + j) * product.team_warps + w];
        return total;
    };
    for (int i = static_cast<int>(threadIdx.x); i < n_rows * n; i += static_cast<int>(blockDim.x)) {
        const int j = i / n_rows, row = i - j * n_rows;
        const int64_t r = first + row;
        float& y = product.y[j * product.n_out + r];
        if (glu) {
            y = silu(sum_of(2 * row, j)) * sum_of(2 * row + 1, j);
        } else {
            y = sum_of(row, j) + (product.bias ? product.bias[r] : 0.0f) + (product.add ? y : 0.0f);
        }
    }
}

template <DType T, int N>
__device__ void run(const Job& job, const Product& product) {
    FASA_DYNAMIC_SHARED(shared);
    Activations a = job.a;
    const int n_parts = (a.n_in + part_values<T> - 1) / part_values<T>, glu = job.glu ? 1 : 0;
    const int n_goes = (a.n + N - 1) / N, n_sums = n_goes * N;
    const int64_t block = static_cast<int>(blockIdx.x) - product.first_block;
    const int64_t begin = product.n_out * block / product.n_blocks;
    const int64_t end = product.n_out * (block + 1) / product.n_blocks;
    const Place place(product.team_warps);
    float* sums = reinterpret_cast<float*>(shared + job.sums_at);

    bool prepared = false;
    for (int64_t first = begin; first < end; first += job.chunk_rows) {
        const int n_rows = static_cast<int>(min(static_cast<int64_t>(job.chunk_rows), end - first));
        const int n_weight_rows = place.team < place.n_teams ? n_rows << glu : 0;
        const Rows rows = {product.w + static_cast<size_t>(first) * product.row_bytes, product.row_bytes, product.to_up,
                           glu};
        for (int i = 0; i < n_goes * product.n_passes; ++i) {
            const int go = i / product.n_passes, pass = i % product.n_passes;
            Worker<T, N> worker(place, product.team_warps, pass, n_parts);
            worker.start(rows, place, n_weight_rows);
            if (!prepared) {
                float4 weight = {0, 0, 0, 0};
                if (N == 1 && a.norm && 4 * static_cast<int>(threadIdx.x) < a.n_in) {
                    weight = load_four(a.norm, threadIdx.x);
                }
                ptx::wait_for_previous();
                if constexpr (N == 1) prepare<T>(a, job.eps, weight, shared);
                prepared = true;
            }
            worker.x.load(a, go * N, worker.part, worker.inside);
            worker.run(rows, place, n_weight_rows, n_sums, sums + go * N * product.team_warps, product.team_warps,
                       pass > 0);
        }
        __syncthreads();
        finish(product, first, n_rows, job.glu, a.n, n_sums, sums);
        __syncthreads();
    }
}

__device__ inline const Product& product_of_block(const Job& job) {
    int p = 0;
    while (p + 1 < job.n_products && static_cast<int>(blockIdx.x) >= job.product[p + 1].first_block) ++p;
    return job.product[p];
}

// Products of one type, and of any.
template <DType T, int N>
__global__ void __launch_bounds__(max_warps<N>* WARP, 1) products_of_type(const __grid_constant__ Job job) {
    ptx::start_next();
    run<T, N>(job, product_of_block(job));
}
template <int N>
__global__ void __launch_bounds__(max_warps_mixed<N>* WARP, 1) products_of_types(const __grid_constant__ Job job) {
    ptx::start_next();
    const Product& product = product_of_block(job);
    with_type_on_device(product.dtype, [&]<DType T>() { run<T, N>(job, product); });
}

// Starts the kernel for N rows held. One file for each N, as they take long to compile.
template <int N>
void launch_products(Launch how, const Job& job, bool mixed);
extern template void launch_products<1>(Launch, const Job&, bool);
extern template void launch_products<2>(Launch, const Job&, bool);
extern template void launch_products<4>(Launch, const Job&, bool);

}  // namespace fasa::cuda::decode
