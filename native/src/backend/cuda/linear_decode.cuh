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
    int64_t to_odd,
        to_pair;  // of a team's rows, every other one being up's: from an even one to the next, the one after
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
// How a block is made up, so that activations and weights under way fit in registers: few warps with many weight rows
// each, or more with fewer rows, which suits types of more bytes, and long rows that few warps cannot share evenly.
enum class Team { few, many };

// Warps of a block at most for N rows of activations (1, 2 or 4); fewer where the products of a launch have several
// types.
template <int N, Team TEAM>
inline constexpr int max_warps = N > 2                ? 16
                                 : N > 1              ? 20
                                 : TEAM == Team::many ? 28
                                                      : 24;
template <int N>
inline constexpr int max_warps_mixed = N > 1 ? 12 : 16;

// Whether few warps have the registers to keep four rows of a type under way.
template <DType T>
inline constexpr bool suits_few = sizeof(Part<T>) <= 32 && T != FASA_DTYPE_Q6_K;

// Weight rows under way in each thread.
template <DType T, int N, Team TEAM>
constexpr int rows_ahead() {
    if (N == 1) return TEAM == Team::few && suits_few<T> ? 4 : 2;
    return sizeof(Part<T>) > 32 && (N > 2 || T == FASA_DTYPE_Q8_0) ? 2 : 4;
}

constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }

// Eight values of a row from 8 i on; zeros beyond its end.
struct Eight {
    float4 low, high;

    __device__ Eight(const float* x, int i, int n_eights) {
        const bool inside = i < n_eights;
        low = inside ? load_four(x, 2 * i) : float4{0, 0, 0, 0};
        high = inside ? load_four(x, 2 * i + 1) : float4{0, 0, 0, 0};
    }
    __device__ float square_sum() const { return cuda::square_sum(low) + cuda::square_sum(high); }
};

// Norms and quantises the row of activations into shared memory; for float weights finds only the norm's scale. All
// blocks do it and memory is idle meanwhile, so it takes as few instructions as it can.
template <DType T>
__device__ void prepare(Activations& a, float eps, uint8_t* shared) {
    float* sums = reinterpret_cast<float*>(shared);
    if (is_float_type<T> || a.quantized.q) {
        if (a.norm) a.scale = norm_scale<true>(a.x, a.n_in, eps, sums);
        return;
    }
    a.quantized.q = reinterpret_cast<int8_t*>(shared + NORM_BYTES);
    a.quantized.d = reinterpret_cast<float*>(shared + NORM_BYTES + a.n_in);
    const int n_eights = a.n_in / 8, n_threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i - thread < n_eights; i += n_threads) {
        Eight x(a.x, i, n_eights);
        if (a.norm) {
            const Eight weight(a.norm, i, n_eights);
            if (i == thread) {
                float sum = x.square_sum();
                for (int j = i + n_threads; j < n_eights; j += n_threads) sum += Eight(a.x, j, n_eights).square_sum();
                a.scale = norm_scale_of(sum, a.n_in, eps, sums);
            }
            x.low = normed(x.low, a.scale, weight.low);
            x.high = normed(x.high, a.scale, weight.high);
        }
        if (i - thread % WARP >= n_eights) continue;
        const QuantizedEight eight = quantize_eight(x.low, x.high);
        if (i < n_eights) store_eight(a.quantized, i, eight);
    }
    __syncthreads();
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

// The weight rows of a team in a chunk, of a gate and its mate in turns: where they lie, and where their sums go.
struct TeamRows {
    const uint8_t* even;  // the row with an even number to load next, or whose odd mate is next
    int n, team;

    __device__ TeamRows(const Product& product, bool glu, const Place& place, int64_t first, int n_rows)
        : even(product.w + (first + place.team) * product.row_bytes), team(place.team) {
        const bool works = team < product.n_teams && team < n_rows;
        n = works ? (divided_by(product.n_teams_inverse, n_rows - 1 - team) + 1) << (glu ? 1 : 0) : 0;
    }
    // Among the sums of the chunk.
    __device__ int place_of_sum(const Product& product, bool glu, int row) const {
        const int shift = glu ? 1 : 0;
        return ((team + (row >> shift) * product.n_teams) << shift) + (row & shift);
    }
};

// What a thread multiplies and where the sums of its warp go.
template <DType T, int N, Team TEAM>
struct Worker {
    static constexpr int R = rows_ahead<T, N, TEAM>();
    static constexpr int S = N == 1 ? 4 : R, M = S * N;  // rows whose sums the lanes add up together; those sums
    Part<T> weights[R];
    ActivationPart<T, N> x;
    int part, n_parts;
    bool inside;

    // A thread beyond the end of the row reads the last part and multiplies it by zeros.
    __device__ Worker(int thread_of_row, int n_parts_of_row) : n_parts(n_parts_of_row) {
        inside = thread_of_row < n_parts;
        part = min(thread_of_row, n_parts - 1);
    }

    // The next row, which is row u from one with an even number on.
    __device__ void load_next(const Product& product, TeamRows& rows, int u) {
        weights[u % R].load(u % 2 == 0 ? rows.even : rows.even + product.to_odd, n_parts, part);
        if (u % 2 == 1) rows.even += product.to_pair;
    }

    __device__ void start(const Product& product, TeamRows& rows) {
#pragma unroll
        for (int u = 0; u < R; ++u) {
            if (u < rows.n) load_next(product, rows, u);
        }
    }

    // sums [rows of the chunk][n_sums][team_warps], to which a later pass adds; here N of the n_sums.
    __device__ void run(const Product& product, bool glu, TeamRows& rows, const Place& place, float* sums, int n_sums,
                        bool later_pass) {
        const int mine = place.lane / (WARP / M);  // of the M sums of S rows; of those, the ones that one lane writes
        const bool writes = place.lane % (WARP / M) == 0;
        for (int row = 0; row < rows.n; row += S) {
            float y[M] = {};
#pragma unroll
            for (int u = 0; u < S; ++u) {
                if (row + u < rows.n) {
                    x.dot(weights[u % R], part, y + u * N);
                    if (row + u + R < rows.n) load_next(product, rows, u + R);
                }
            }
            const float total = sums_of_warp<M>(y, place.lane);
            const int sum_row = row + mine / N;
            if (writes && sum_row < rows.n) {
                float& sum = sums[(rows.place_of_sum(product, glu, sum_row) * n_sums + mine % N) * product.team_warps +
                                  place.warp];
                sum = later_pass ? sum + total : total;
            }
        }
    }
};

// What a row of y begins with.
__device__ inline float start_of(const Product& product, int64_t row, int j) {
    return (product.bias ? product.bias[row] : 0.0f) + (product.add ? product.y[j * product.n_out + row] : 0.0f);
}

// y of n_rows rows from `first` on, from the teams' sums. `start` is that of the thread's first row, fetched ahead.
__device__ inline void finish(const Product& product, int64_t first, int n_rows, bool glu, int n, int n_sums,
                              const float* sums, float start) {
    const auto sum_of = [&](int row, int j) {
        float total = 0;
        for (int w = 0; w < product.team_warps; ++w) total += sums[(row * n_sums + j) * product.team_warps + w];
        return total;
    };
    const int thread = static_cast<int>(threadIdx.x);
    for (int row = thread; row < n_rows; row += static_cast<int>(blockDim.x)) {
        const int64_t r = first + row;
        for (int j = 0; j < n; ++j) {
            float& y = product.y[j * product.n_out + r];
            if (glu) {
                y = silu(sum_of(2 * row, j)) * sum_of(2 * row + 1, j);
            } else {
                y = sum_of(row, j) + (row == thread && j == 0 ? start : start_of(product, r, j));
            }
        }
    }
}

template <DType T, int N, Team TEAM>
__device__ void run(const Job& job, const Product& product) {
    FASA_DYNAMIC_SHARED(shared);
    Activations a = job.a;
    const int n_parts = (a.n_in + part_values<T> - 1) / part_values<T>;
    const int n = N == 1 ? 1 : a.n, n_sums = (n + N - 1) / N * N;
    const int block = static_cast<int>(blockIdx.x) - product.first_block;
    const int64_t begin = static_cast<int64_t>(product.block_rows) * block + min(block, product.n_longer);
    const int n_block_rows = product.block_rows + (block < product.n_longer ? 1 : 0);
    const Place place(product);
    float* sums = reinterpret_cast<float*>(shared + job.sums_at);

    bool prepared = false;
#pragma unroll 1
    for (int done = 0; done < n_block_rows; done += job.chunk_rows) {
        const int n_rows = min(job.chunk_rows, n_block_rows - done);
        float start = 0;
        for (int go = 0; go < n_sums; go += N) {
#pragma unroll 1
            for (int pass = 0; pass < product.n_passes; ++pass) {
                TeamRows rows(product, job.glu, place, begin + done, n_rows);
                Worker<T, N, TEAM> worker((pass * product.team_warps + place.warp) * WARP + place.lane, n_parts);
                worker.start(product, rows);
                if (!prepared) {
                    ptx::wait_for_previous();
                    if constexpr (N == 1) prepare<T>(a, job.eps, shared);
                    prepared = true;
                }
                if (go == 0 && pass == 0 && static_cast<int>(threadIdx.x) < n_rows && !job.glu) {
                    start = start_of(product, begin + done + threadIdx.x, 0);
                }
                worker.x.load(a, go, worker.part, worker.inside);
                worker.run(product, job.glu, rows, place, sums + go * product.team_warps, n_sums, pass > 0);
            }
        }
        __syncthreads();
        finish(product, begin + done, n_rows, job.glu, n, n_sums, sums, start);
        __syncthreads();
    }
}

__device__ inline const Product& product_of_block(const Job& job) {
    int p = 0;
    while (p + 1 < job.n_products && static_cast<int>(blockIdx.x) >= job.product[p + 1].first_block) ++p;
    return job.product[p];
}

// Products of one type, and of any.
template <DType T, int N, Team TEAM>
__global__ void __launch_bounds__(max_warps<N, TEAM>* WARP, 1) products_of_type(const __grid_constant__ Job job) {
    ptx::start_next();
    run<T, N, TEAM>(job, product_of_block(job));
}
template <int N>
__global__ void __launch_bounds__(max_warps_mixed<N>* WARP, 1) products_of_types(const __grid_constant__ Job job) {
    ptx::start_next();
    const Product& product = product_of_block(job);
    with_type_on_device(product.dtype, [&]<DType T>() { run<T, N, Team::few>(job, product); });
}

// Starts the kernel for N rows held. One file for each N and team, as they take long to compile. Products of several
// types (mixed) have no team.
template <int N, Team TEAM>
void launch_products(Launch how, const Job& job, bool mixed);
extern template void launch_products<1, Team::few>(Launch, const Job&, bool);
extern template void launch_products<1, Team::many>(Launch, const Job&, bool);
extern template void launch_products<2, Team::few>(Launch, const Job&, bool);
extern template void launch_products<4, Team::few>(Launch, const Job&, bool);

}  // namespace fasa::cuda::decode
