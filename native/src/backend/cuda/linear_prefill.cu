#include "backend/cuda/linear_prefill.h"

#include <cuda_fp16.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/weights.cuh"
#include "base/error.h"

namespace fasa::cuda {
namespace {

constexpr int n_threads = 256, n_warps = n_threads / 32;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr uint32_t infinity_bits = 0x7f800000u;

unsigned n_blocks(int64_t n) { return static_cast<unsigned>((n + n_threads - 1) / n_threads); }

// What a row takes in half precision, so that rows are 16-byte aligned; zeros fill it up.
__host__ __device__ int64_t padded(int64_t n_in) { return (n_in + 7) & ~int64_t{7}; }

// ---- x to half precision ----

struct Target {
    float* y;
    const float* bias;
    int64_t n_out;
    bool add;
};
struct Targets {
    Target of[LinearPrefill::max_products];
    int n;
};

// The power of two that a row is divided by: 1 where half precision holds its largest value and has all its 11 bits
// down to 2^-8 of it. Else the largest comes to 2^14.., but not by more than 2^64, so that y can be divided too.
__device__ float scale_for(uint32_t largest_bits) {
    const int exponent = static_cast<int>(largest_bits >> 23) - 127;
    if (largest_bits == 0 || largest_bits >= infinity_bits || (exponent >= -6 && exponent < 15)) return 1;
    return ldexpf(1.0f, max(exponent - 14, -64));
}

// The largest absolute value in the block, as bits: NaN is above infinity, and both are above any number.
__device__ uint32_t largest_of_block(uint32_t bits) {
    __shared__ uint32_t of_warp[n_warps];
    for (int step = 16; step > 0; step /= 2) bits = max(bits, __shfl_xor_sync(all_lanes, bits, step));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = bits;
    __syncthreads();
    for (int w = 0; w < n_warps; ++w) bits = max(bits, of_warp[w]);
    return bits;
}

__device__ uint32_t absolute_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

__device__ uint32_t pack(float a, float b) {
    const __half2 pair = __float22half2_rn(make_float2(a, b));
    uint32_t bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}

// The row's values to halves, four at a time.
__device__ float round_row_by_4(uint16_t* to, const float* x, int64_t n_in) {
    const auto* x4 = reinterpret_cast<const float4*>(x);
    uint32_t largest = 0;
#pragma unroll 4
    for (int64_t k = threadIdx.x; k < n_in / 4; k += n_threads) {
        const float4 v = x4[k];
        largest =
            max(max(largest, max(absolute_bits(v.x), absolute_bits(v.y))), max(absolute_bits(v.z), absolute_bits(v.w)));
    }
    const float scale = scale_for(largest_of_block(largest)), inverse = 1 / scale;
#pragma unroll 4
    for (int64_t k = threadIdx.x; k < n_in / 4; k += n_threads) {
        const float4 v = x4[k];
        reinterpret_cast<uint2*>(to)[k] = {pack(v.x * inverse, v.y * inverse), pack(v.z * inverse, v.w * inverse)};
    }
    return scale;
}

__device__ float round_row(uint16_t* to, const float* x, int64_t n_in) {
    uint32_t largest = 0;
    for (int64_t k = threadIdx.x; k < n_in; k += n_threads) largest = max(largest, absolute_bits(x[k]));
    const float scale = scale_for(largest_of_block(largest)), inverse = 1 / scale;
    for (int64_t k = threadIdx.x; k < n_in; k += n_threads) to[k] = __half_as_ushort(__float2half_rn(x[k] * inverse));
    return scale;
}

// What y starts from: the sum goes on top, and all of it is multiplied by the row's scale in the end.
__device__ void start_row(const Target& t, int64_t row, float scale) {
    if (!t.bias && (!t.add || scale == 1)) return;
    const float inverse = 1 / scale;
    float* y = t.y + row * t.n_out;
    for (int64_t r = threadIdx.x; r < t.n_out; r += n_threads) {
        y[r] = ((t.bias ? t.bias[r] : 0.0f) + (t.add ? y[r] : 0.0f)) * inverse;
    }
}

// One block a row. to [n][padded(n_in)], row_scale [n].
__global__ void __launch_bounds__(n_threads)
    round_rows(uint16_t* to, float* row_scale, const float* x, int64_t n_in, Targets targets) {
    ptx::start_next();
    ptx::wait_for_previous();
    const int64_t row = blockIdx.x, stride = padded(n_in);
    to += row * stride;
    x += row * n_in;
    const float scale = n_in % 4 == 0 ? round_row_by_4(to, x, n_in) : round_row(to, x, n_in);
    if (n_in + threadIdx.x < stride) to[n_in + threadIdx.x] = 0;
    if (threadIdx.x == 0) row_scale[row] = scale;
    for (int p = 0; p < targets.n; ++p) start_row(targets.of[p], row, scale);
}

// y *= the row's scale, which mostly is 1. Product blockIdx.y.
__global__ void __launch_bounds__(n_threads) scale_rows(Targets targets, const float* row_scale, int n) {
    ptx::start_next();
    ptx::wait_for_previous();
    const Target t = targets.of[blockIdx.y];
    for (int row = blockIdx.x; row < n; row += gridDim.x) {
        const float scale = row_scale[row];
        if (scale == 1) continue;
        for (int64_t r = threadIdx.x; r < t.n_out; r += n_threads) t.y[row * t.n_out + r] *= scale;
    }
}

// ---- weights to half precision ----

// Where 16-byte part j of slice i of a warp lies in shared memory: without conflicts whether a lane accesses a slice or
// a warp consecutive parts.
__device__ int place(int i, int j) { return 4 * i + (j ^ (i >> 1 & 3)); }

// A thread unpacks a slice of 32 values; its warp writes them, so that every store is 512 consecutive bytes. Slices 0
// to n - 1 from row `w` on, whose rows have n_slices.
template <DType T>
__global__ void __launch_bounds__(n_threads)
    unpack_slices(uint16_t* to, const uint8_t* w, size_t row_bytes, uint32_t n_slices, uint32_t n) {
    __shared__ uint4 parts[n_warps][128];
    const uint32_t slice = blockIdx.x * n_threads + threadIdx.x;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (slice < n) {
        const uint32_t row = slice / n_slices;
        __half2 values[16];
        dequantize<T, 32>(w + row * row_bytes, int64_t{32} * n_slices, int64_t{32} * (slice - row * n_slices), values);
#pragma unroll
        for (int j = 0; j < 4; ++j) memcpy(&parts[warp][place(lane, j)], &values[4 * j], sizeof(uint4));
    }
    __syncwarp();
    ptx::wait_for_previous();  // which may still read what is overwritten here
    const uint32_t first = slice - lane;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t part = 32 * i + lane;
        if (first + part / 4 < n) {
            reinterpret_cast<uint4*>(to)[size_t{4} * first + part] = parts[warp][place(part / 4, part % 4)];
        }
    }
}

// The same for float types, 8 values a thread, times a power of two. to [rows][8 * n_parts]; n parts in all.
template <DType T>
__global__ void __launch_bounds__(n_threads) unpack_values(uint16_t* to, const uint8_t* w, size_t row_bytes,
                                                           int64_t n_in, uint32_t n_parts, uint32_t n, float factor) {
    const uint32_t part = blockIdx.x * n_threads + threadIdx.x;
    if (part >= n) return;
    const uint32_t row = part / n_parts;
    float v[8];
    dequantize<T, 8>(w + row * row_bytes, n_in, int64_t{8} * (part - row * n_parts), v);
    for (float& value : v) value *= factor;
    ptx::wait_for_previous();
    reinterpret_cast<uint4*>(to)[part] = {pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7])};
}

// Rows of w from `first` on, of any type but F16; scale as Matrix has it.
void unpack(uint16_t* to, const WeightView& w, int64_t first, int64_t n_rows, float scale, cudaStream_t stream) {
    const auto* from = static_cast<const uint8_t*>(w.data) + static_cast<size_t>(first) * w.row_bytes;
    const bool known = with_type(w.dtype, [&]<DType T>() {
        if constexpr (T == FASA_DTYPE_F32 || T == FASA_DTYPE_BF16) {
            const int64_t n_parts = padded(w.n_in) / 8;
            launch({"unpack_values", dim3(n_blocks(n_parts * n_rows)), dim3(n_threads), 0, stream, true},
                   unpack_values<T>, to, from, w.row_bytes, w.n_in, n_parts, n_parts * n_rows, 1 / scale);
        } else if constexpr (T != FASA_DTYPE_F16) {
            const int64_t n_slices = w.n_in / 32;
            launch({"unpack_slices", dim3(n_blocks(n_slices * n_rows)), dim3(n_threads), 0, stream, true},
                   unpack_slices<T>, to, from, w.row_bytes, n_slices, n_slices * n_rows);
        }
    });
    if (!known) fail(FASA_ERROR_UNSUPPORTED, "tensor type %d is not supported", static_cast<int>(w.dtype));
}

template <DType T>
__global__ void __launch_bounds__(n_threads)
    find_largest(uint32_t* largest, const uint8_t* w, size_t row_bytes, int64_t n_in, int64_t n_rows) {
    uint32_t bits = 0;
    for (int64_t row = blockIdx.x; row < n_rows; row += gridDim.x) {
        for (int64_t k = int64_t{8} * threadIdx.x; k < n_in; k += 8 * n_threads) {
            float v[8];
            dequantize<T, 8>(w + row * row_bytes, n_in, k, v);
            for (const float value : v) bits = max(bits, absolute_bits(value));
        }
    }
    bits = largest_of_block(bits);
    if (threadIdx.x == 0) atomicMax(largest, bits);
}

constexpr uintptr_t workspace_alignment = 256;

uint8_t* aligned(uint8_t* p) {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(p) + workspace_alignment - 1) &
                                      ~(workspace_alignment - 1));
}

}  // namespace

LinearPrefill::Scratch::Scratch(Arena& arena, const Limits& limits)
    : x(arena.take<uint16_t>(static_cast<size_t>(limits.n_max) * padded(limits.n_in_max))),
      row_scale(arena.take<float>(limits.n_max)),
      w(arena.take<uint16_t>(std::max(limits.n_unpacked, padded(limits.n_in_max)))),
      workspace(aligned(arena.take<uint8_t>(Gemm::workspace_bytes + workspace_alignment))),
      largest(arena.take<uint32_t>(1)) {}

size_t LinearPrefill::scratch_bytes(const Limits& limits) {
    Arena measure;
    Scratch(measure, limits);
    return measure.used();
}

LinearPrefill::LinearPrefill(const Limits& limits, void* scratch)
    : limits_(limits), arena_(scratch), scratch_(arena_, limits) {}

// The power of two that brings the largest value to 2^14..2^15; 1 for types that are sized for half precision.
float LinearPrefill::scale_of(const WeightView& w, cudaStream_t stream) {
    if (w.dtype != FASA_DTYPE_F32 && w.dtype != FASA_DTYPE_BF16) return 1;
    const char* what = "looking at weights";
    check(cudaMemsetAsync(scratch_.largest, 0, sizeof(uint32_t), stream), what);
    with_type(w.dtype, [&]<DType T>() {
        if constexpr (T == FASA_DTYPE_F32 || T == FASA_DTYPE_BF16) {
            launch({"find_largest", dim3(static_cast<unsigned>(std::min<int64_t>(w.n_out, 2048))), dim3(n_threads), 0,
                    stream},
                   find_largest<T>, scratch_.largest, static_cast<const uint8_t*>(w.data), w.row_bytes, w.n_in,
                   w.n_out);
        }
    });
    uint32_t bits = 0;
    check(cudaStreamSynchronize(stream), what);
    check(cudaMemcpy(&bits, scratch_.largest, sizeof(bits), cudaMemcpyDeviceToHost), what);
    if (bits == 0 || bits >= infinity_bits) return 1;
    return std::ldexp(1.0f, std::max(static_cast<int>(bits >> 23) - 127 - 14, -126));
}

LinearPrefill::Matrix LinearPrefill::make(const WeightView& w, cudaStream_t stream) {
    const int64_t stride = padded(w.n_in);
    if (w.dtype == FASA_DTYPE_F16) {
        const int plan = gemm_.plan({w.n_out, stride, static_cast<int64_t>(w.row_bytes / sizeof(uint16_t)), w.n_out});
        return {w.n_out, plan, plan, 1};
    }
    constexpr int64_t whole = 256;  // rows; a multiple of the kernels' tiles
    int64_t n_rows = std::max<int64_t>(1, limits_.n_unpacked / stride);
    if (n_rows >= w.n_out) {
        n_rows = w.n_out;
    } else if (n_rows > whole) {
        const int64_t most = n_rows / whole * whole, n_parts = (w.n_out + most - 1) / most;
        n_rows = std::min(most, ((w.n_out + n_parts - 1) / n_parts + whole - 1) / whole * whole);
    } else {
        n_rows = std::max<int64_t>(1, n_rows / 4 * 4);  // keeps the rows of y aligned
    }
    const int64_t left = w.n_out % n_rows;
    const int plan = gemm_.plan({n_rows, stride, stride, w.n_out});
    return {n_rows, plan, left ? gemm_.plan({left, stride, stride, w.n_out}) : plan, scale_of(w, stream)};
}

const LinearPrefill::Matrix& LinearPrefill::known(const WeightView& w, cudaStream_t stream) {
    const auto found = matrices_.find(w.data);
    return found != matrices_.end() ? found->second : matrices_.emplace(w.data, make(w, stream)).first->second;
}

void LinearPrefill::add(const WeightView& w, cudaStream_t stream) { known(w, stream); }

void LinearPrefill::multiply(const LinearOut& out, int n, cudaStream_t stream) {
    const WeightView& w = out.w;
    const Matrix& matrix = known(w, stream);
    for (int64_t first = 0; first < w.n_out; first += matrix.n_rows) {
        const int64_t n_rows = std::min(matrix.n_rows, w.n_out - first);
        const uint16_t* halves = static_cast<const uint16_t*>(w.data);
        if (w.dtype != FASA_DTYPE_F16) {
            unpack(scratch_.w, w, first, n_rows, matrix.scale, stream);
            halves = scratch_.w;
        }
        gemm_.run(n_rows == matrix.n_rows ? matrix.plan : matrix.last_plan, out.y + first, halves, scratch_.x, n,
                  matrix.scale, out.add || out.bias ? 1.0f : 0.0f, scratch_.workspace, stream);
    }
}

void LinearPrefill::run(const LinearOut* out, int n_products, const float* x, int n, cudaStream_t stream) {
    const int64_t n_in = out[0].w.n_in;
    if (n_products > max_products || n > limits_.n_max || n_in > limits_.n_in_max) {
        fail(FASA_ERROR_ARGUMENT, "%d products of %d rows of %lld values are more than was planned for", n_products, n,
             static_cast<long long>(n_in));
    }
    Targets targets{{}, n_products};
    for (int p = 0; p < n_products; ++p) {
        known(out[p].w, stream);  // may wait: not between the launches
        targets.of[p] = {out[p].y, out[p].bias, out[p].w.n_out, out[p].add};
    }
    launch({"round_rows", dim3(static_cast<unsigned>(n)), dim3(n_threads), 0, stream, true}, round_rows, scratch_.x,
           scratch_.row_scale, x, n_in, targets);
    for (int p = 0; p < n_products; ++p) multiply(out[p], n, stream);
    launch({"scale_rows", dim3(static_cast<unsigned>(std::min(n, 256)), static_cast<unsigned>(n_products)),
            dim3(n_threads), 0, stream, true},
           scale_rows, targets, scratch_.row_scale, n);
}

}  // namespace fasa::cuda
