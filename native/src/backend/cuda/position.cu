#include <cuda_fp16.h>

#include "backend/cuda/keys.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/position.h"
#include "backend/cuda/ptx.cuh"

namespace fasa::cuda {
namespace {

constexpr int n_warps = 4;
constexpr unsigned all_lanes = 0xffffffffu;

struct Heads {
    float* q;
    const float *k, *v;
    int n_head;
};

// cos, sin [n_rot / 2] of one position, by all threads of the block.
__device__ void angles(float* cos, float* sin, const RopeView& rope, int32_t pos) {
    for (int i = threadIdx.x; i < rope.n_rot / 2; i += blockDim.x) {
        double s, c;
        sincos(rope.frequency[i] * pos, &s, &c);
        cos[i] = static_cast<float>(c * rope.magnitude);
        sin[i] = static_cast<float>(s * rope.magnitude);
    }
}

// head[d] = x[d] (/ rms(x) * weight[d]), by a warp.
__device__ void load_head(float* head, const float* x, const float* weight, float eps, int head_dim) {
    const int lane = threadIdx.x % 32;
    float sum = 0;
#pragma unroll 4
    for (int d = lane; d < head_dim; d += 32) {
        const float value = x[d];
        sum = fmaf(value, value, sum);
        head[d] = value;
    }
    if (weight) {
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(all_lanes, sum, step);
        const float scale = 1.0f / sqrtf(sum / head_dim + eps);
        for (int d = lane; d < head_dim; d += 32) head[d] *= scale * weight[d];
    }
    __syncwarp();
}

__device__ void rotate(float* head, const RopeView& rope, const float* cos, const float* sin) {
    const int half = rope.n_rot / 2;
    const bool interleaved = rope.layout == RopeLayout::interleaved;
    for (int i = threadIdx.x % 32; i < half; i += 32) {
        float& a = head[interleaved ? 2 * i : i];
        float& b = head[interleaved ? 2 * i + 1 : i + half];
        const float x = a, y = b;
        a = x * cos[i] - y * sin[i];
        b = x * sin[i] + y * cos[i];
    }
    __syncwarp();
}

__device__ uint16_t half_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }

// The codes and the scale of a key, by a warp, as KeyCodes has them. dims(d): its dim d as stored.
template <class Dims>
__device__ void encode(const KeyCodes& codes, const Dims& dims) {
    constexpr unsigned magnitude = 0x7fff, infinity = 0x7c00, nan = 0x7e00;
    const int lane = threadIdx.x % 32, largest = codes.type == DomType::q4 ? 7 : 127;
    const auto value = [](unsigned bits) { return __half2float(__ushort_as_half(static_cast<uint16_t>(bits))); };
    unsigned top = 0;
    for (int d = lane; d < codes.n; d += 32) top = max(top, dims(d) & magnitude);
    for (int step = 16; step > 0; step /= 2) top = max(top, __shfl_xor_sync(all_lanes, top, step));
    const bool finite = top < infinity;
    const unsigned scale = finite ? half_bits(value(top) / static_cast<float>(largest)) : nan;
    const float inverse = finite && scale > 0 ? 1.0f / value(scale) : 0.0f;
    if (lane == 0) *codes.scale = static_cast<uint16_t>(scale);
    const auto code_of = [&](int d) {
        if (!finite) return 0;
        return min(max(__float2int_rn(value(dims(d)) * inverse), -largest), largest);
    };
    for (int d = 2 * lane; d < codes.n; d += 64) {
        const int a = code_of(d), b = code_of(d + 1);
        if (codes.type == DomType::q4) {
            codes.code[d / 2] = static_cast<uint8_t>((a + 8) | (b + 8) << 4);
        } else {
            codes.code[d] = static_cast<uint8_t>(a);
            codes.code[d + 1] = static_cast<uint8_t>(b);
        }
    }
}

// Row blockIdx.x; its heads, queries then keys then values, are dealt out to the warps of gridDim.y blocks. A warp has
// all of a head in shared memory before it writes any of it, so that q may be permuted in place.
__global__ void __launch_bounds__(n_warps * 32, 8)
    rope_store_kernel(Heads heads, RopeView rope, HeadNorm norm, KvView kv, uint16_t* apart, const Step* step) {
    FASA_DYNAMIC_SHARED(shared);  // n_rot angles, then for every warp a head and in which order it is stored
    const int head_dim = kv.head_dim, n_head = heads.n_head, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* cos = reinterpret_cast<float*>(shared);
    float* sin = cos + rope.n_rot / 2;
    float* head = sin + rope.n_rot / 2 + warp * head_dim;
    int16_t* source = reinterpret_cast<int16_t*>(sin + rope.n_rot / 2 + n_warps * head_dim) + warp * head_dim;
    const int64_t row = blockIdx.x;
    // The step, the frequencies and the orders were there before the previous kernel began.
    const int32_t seq = step->seq, pos = step->pos0 + static_cast<int32_t>(row);

    const int n_rotated = n_head + kv.n_head_kv;
    const auto kv_head_of = [&](int item) {
        return item < n_head ? item / (n_head / kv.n_head_kv) : (item - n_head) % kv.n_head_kv;
    };
    const auto find_sources = [&](int item) {
        if (item >= n_rotated) return;
        const int16_t* order = kv.order ? kv.order + int64_t{kv_head_of(item)} * head_dim : nullptr;
        for (int d = lane; d < head_dim; d += 32) source[d] = order ? order[d] : static_cast<int16_t>(d);
    };
    const int first = blockIdx.y * n_warps + warp;
    find_sources(first);
    angles(cos, sin, rope, pos);
    __syncthreads();
    ptx::start_next();
    ptx::wait_for_previous();

    for (int item = first; item < n_rotated + kv.n_head_kv; item += gridDim.y * n_warps) {
        if (item != first) find_sources(item);
        const bool is_query = item < n_head, is_key = !is_query && item < n_rotated;
        const int h_kv = kv_head_of(item), h = is_query ? item : h_kv;
        const int64_t at = (int64_t{seq} * kv.n_head_kv + h_kv) * kv.n_ctx + pos;
        const int64_t rest_at = apart ? h_kv * int64_t{gridDim.x} + row : at;
        uint16_t* rest = (apart ? apart : kv.rest) + rest_at * (2 * head_dim - kv.n_dom);
        const int64_t from = (row * (is_query ? n_head : kv.n_head_kv) + h) * head_dim;

        if (is_query) {
            load_head(head, heads.q + from, norm.q, norm.eps, head_dim);
            rotate(head, rope, cos, sin);
            for (int d = lane; d < head_dim; d += 32) heads.q[from + d] = head[source[d]];
        } else if (is_key) {
            load_head(head, heads.k + from, norm.k, norm.eps, head_dim);
            rotate(head, rope, cos, sin);
            uint16_t* dom = kv.dom + at * kv.n_dom;
            for (int d = lane; d < head_dim; d += 32) {
                (d < kv.n_dom ? dom[d] : rest[d - kv.n_dom]) = half_bits(head[source[d]]);
            }
            if (kv.codes.n > 0) {
                encode(codes_at(kv.codes, at), [&](int d) -> unsigned { return half_bits(head[source[d]]); });
            }
        } else {
            uint16_t* value = rest + head_dim - kv.n_dom;
#pragma unroll 4
            for (int d = lane; d < head_dim; d += 32) value[d] = half_bits(heads.v[from + d]);
        }
        __syncwarp();
    }
}

}  // namespace

void rope_store(float* q, const float* k, const float* v, int n_head, const RopeView& rope, const HeadNorm& norm,
                const KvView& kv, const Step* step, int n, cudaStream_t stream, uint16_t* rest) {
    // With few rows more blocks share the heads of each; with many, fewer blocks take the same angles.
    const int n_items = n_head + 2 * kv.n_head_kv;
    const unsigned n_shares = n >= 64 ? 1 : static_cast<unsigned>((n_items + n_warps - 1) / n_warps);
    const size_t n_shared = static_cast<size_t>(rope.n_rot + n_warps * kv.head_dim) * sizeof(float) +
                            static_cast<size_t>(n_warps * kv.head_dim) * sizeof(int16_t);
    launch({.name = "rope_store",
            .grid = dim3(static_cast<unsigned>(n), n_shares),
            .block = dim3(n_warps * 32),
            .shared_bytes = n_shared,
            .stream = stream,
            .overlap = true},
           rope_store_kernel, Heads{q, k, v, n_head}, rope, norm, kv, rest, step);
}

}  // namespace fasa::cuda
