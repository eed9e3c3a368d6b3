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

// x / n for 0 <= x < 2^15 and n <= 32, by its inverse 2^20 / n, rounded up.
constexpr int INVERSE_BITS = 20;
__device__ inline int divided_by(uint32_t inverse, int x) {
    return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(x)) * inverse >> INVERSE_BITS);
}

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
    int block_rows, n_longer;                      // of y, of a block; the first n_longer blocks have one more
    int team_warps, n_teams;                       // warps that share a row, and how often they fit in a block
    uint32_t team_warps_inverse, n_teams_inverse;  // for divided_by
    int n_passes;  // times that a team goes over its rows, as it holds only so much of the activations
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

// Weight rows under way in each thread: about as many bytes for every type, as far as there are registers.
template <DType T, int N>
constexpr int rows_ahead() {
    if (T == FASA_DTYPE_Q8_0) return 2;
    if (T == FASA_DTYPE_Q6_K || T == FASA_DTYPE_Q5_K) return 3;
    return N == 1 && sizeof(Part<T>) <= 20 && T != FASA_DTYPE_Q3_K ? 6 : 4;
}

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

// Where a thread stands: its team takes rows `team`, `team` + n_teams, ... of a chunk.
struct Place {
    int team, warp, lane;  // of the block, of the team, of the warp

    __device__ explicit Place(const Product& product) {
        const int warp_of_block = static_cast<int>(threadIdx.x) / WARP;
        team = divided_by(product.team_warps_inverse, warp_of_block);
        warp = warp_of_block - team * product.team_warps;
        lane = static_cast<int>(threadIdx.x) % WARP;
    }
};

// The weight rows of a team in a chunk, of a gate and its mate in turns: where each lies, and where its sum goes.
struct TeamRows {
    const uint8_t* next;          // the row to load next
    int64_t from_even, from_odd;  // to the next row
    int n, team, n_teams, glu;

    __device__ TeamRows(const Product& product, bool is_glu, const Place& place, int64_t first, int n_rows)
        : team(place.team), n_teams(product.n_teams), glu(is_glu ? 1 : 0) {
        next = product.w + (first + team) * product.row_bytes;
        const int64_t to_next = static_cast<int64_t>(product.row_bytes) * n_teams;
        from_even = is_glu ? product.to_up : to_next;
        from_odd = is_glu ? to_next - product.to_up : to_next;
        const bool works = team < n_teams && team < n_rows;
        n = works ? (divided_by(product.n_teams_inverse, n_rows - 1 - team) + 1) << glu : 0;
    }
    // Among the sums of the chunk.
    __device__ int place_of_sum(int row) const { return ((team + (row >> glu) * n_teams) << glu) + (row & glu); }
};

// What a thread multiplies and where the sums of its warp go.
template <DType T, int N>
struct Worker {
    static constexpr int R = rows_ahead<T, N>(), M = power_of_two(R * N);
    Part<T> weights[R];
    ActivationPart<T, N> x;
    int part, n_parts;
    bool inside;

    // A thread beyond the end of the row reads the last part and its product does not count.
    __device__ Worker(int thread_of_row, int n_parts_of_row) : n_parts(n_parts_of_row) {
        inside = thread_of_row < n_parts;
        part = min(thread_of_row, n_parts - 1);
    }

    __device__ void load_next(TeamRows& rows, int row, int u) {
        weights[u].load(rows.next, n_parts, part);
        rows.next += row % 2 == 0 ? rows.from_even : rows.from_odd;
    }

    __device__ void start(TeamRows& rows) {
#pragma unroll
        for (int u = 0; u < R; ++u) {
            if (u < rows.n) load_next(rows, u, u);
        }
    }

    // sums [rows of the chunk][n_sums][team_warps], to which a later pass adds; here N of the n_sums.
    __device__ void run(TeamRows& rows, const Place& place, float* sums, int n_sums, int team_warps, bool later_pass) {
        const int mine = place.lane / (WARP / M);  // of the M sums of R rows; of those, the ones that one lane writes
        const bool writes = place.lane % (WARP / M) == 0 && mine < R * N;
        for (int row = 0; row < rows.n; row += R) {
            float y[M];
#pragma unroll
            for (int u = 0; u < R; ++u) {
                float product[N] = {};
                if (row + u < rows.n) {
                    x.dot(weights[u], part, product);
                    if (row + u + R < rows.n) load_next(rows, row + u + R, u);
                }
#pragma unroll
                for (int j = 0; j < N; ++j) y[u * N + j] = inside ? product[j] : 0.0f;
            }
#pragma unroll
            for (int i = R * N; i < M; ++i) y[i] = 0;
            const float total = sums_of_warp<M>(y, place.lane);
            const int sum_row = row + mine / N;
            if (writes && sum_row < rows.n) {
                float& sum = sums[(rows.place_of_sum(sum_row) * n_sums + mine % N) * team_warps + place.warp];
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
    for (int row = static_cast<int>(threadIdx.x); row < n_rows; row += static_cast<int>(blockDim.x)) {
        const int64_t r = first + row;
        const float bias = product.bias ? product.bias[r] : 0.0f;
        for (int j = 0; j < n; ++j) {
            float& y = product.y[j * product.n_out + r];
            if (glu) {
                y = silu(sum_of(2 * row, j)) * sum_of(2 * row + 1, j);
            } else {
                y = sum_of(row, j) + bias + (product.add ? y : 0.0f);
            }
        }
    }
}

template <DType T, int N>
__device__ void run(const Job& job, const Product& product) {
    FASA_DYNAMIC_SHARED(shared);
    Activations a = job.a;
    const int n_parts = (a.n_in + part_values<T> - 1) / part_values<T>;
    const int n_sums = (a.n + N - 1) / N * N;
    const int block = static_cast<int>(blockIdx.x) - product.first_block;
    const int64_t begin = static_cast<int64_t>(product.block_rows) * block + min(block, product.n_longer);
    const int n_block_rows = product.block_rows + (block < product.n_longer ? 1 : 0);
    const Place place(product);
    float* sums = reinterpret_cast<float*>(shared + job.sums_at);

    bool prepared = false;
    for (int done = 0; done < n_block_rows; done += job.chunk_rows) {
        const int n_rows = min(job.chunk_rows, n_block_rows - done);
        for (int go = 0; go < n_sums; go += N) {
            for (int pass = 0; pass < product.n_passes; ++pass) {
                TeamRows rows(product, job.glu, place, begin + done, n_rows);
                Worker<T, N> worker((pass * product.team_warps + place.warp) * WARP + place.lane, n_parts);
                worker.start(rows);
                if (!prepared) {
                    float4 weight = {0, 0, 0, 0};
                    if (N == 1 && a.norm && 4 * static_cast<int>(threadIdx.x) < a.n_in) {
                        weight = load_four(a.norm, threadIdx.x);
                    }
                    ptx::wait_for_previous();
                    if constexpr (N == 1) prepare<T>(a, job.eps, weight, shared);
                    prepared = true;
                }
                worker.x.load(a, go, worker.part, worker.inside);
                worker.run(rows, place, sums + go * product.team_warps, n_sums, product.team_warps, pass > 0);
            }
        }
        __syncthreads();
        finish(product, begin + done, n_rows, job.glu, a.n, n_sums, sums);
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
