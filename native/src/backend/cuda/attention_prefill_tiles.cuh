// Tiles of queries, keys and values in shared memory: half precision, rows laid out so that eight of them are read at
// once without bank conflicts.
#pragma once

#include <cuda_fp16.h>

#include <cfloat>
#include <cstdint>

#include "backend/cuda/attention_prefill_state.cuh"
#include "backend/cuda/ptx.cuh"

namespace fasa::cuda {

// A tile of rows of `dims` halves. Where a row is a multiple of 128 bytes, its 16-byte chunks are exchanged by the
// row's number; else the row is padded to an odd number of chunks.
template <int dims>
struct TileLayout {
    static_assert(dims % 16 == 0);
    static constexpr bool swizzled = dims % 64 == 0;
    static constexpr int n_chunks = dims / 8;
    static constexpr int row_bytes = dims * 2 + (swizzled ? 0 : 16);

    // Byte offset of a chunk.
    static __device__ __forceinline__ uint32_t at(uint32_t row, uint32_t chunk) {
        return row * row_bytes + (swizzled ? chunk ^ (row & 7) : chunk) * 16;
    }
    // Byte offset of chunk c + n of a row from that of chunk c < 2, n even.
    static __device__ __forceinline__ uint32_t advance(uint32_t offset, int n) {
        return swizzled ? (offset ^ static_cast<uint32_t>(n % 8 * 16)) + static_cast<uint32_t>(n / 8 * 128)
                        : offset + static_cast<uint32_t>(n * 16);
    }
};

// The planes of one KV head, from position 0 on; head_dim is args.kv.head_dim, or the same as a constant.
__device__ __forceinline__ KvHead cache_of(const PrefillArgs& args, int32_t seq, int head_kv, int head_dim) {
    const KvView& kv = args.kv;
    const RowTile& tile = args.tile;
    const int64_t row = (int64_t{seq} * kv.n_head_kv + head_kv) * kv.n_ctx;
    const int64_t rest_row = tile.rest ? int64_t{head_kv} * tile.n_pos - tile.first : row;
    return {kv.dom + row * kv.n_dom, (tile.rest ? tile.rest : kv.rest) + rest_row * (2 * head_dim - kv.n_dom), kv.n_dom,
            head_dim};
}

// Where dims [dim, dim + 2) of a key or a value lie at position 0, and the halves from one position to the next.
struct CachePlace {
    const uint16_t* at;
    int32_t stride;
};

template <bool is_values>
__device__ __forceinline__ CachePlace cache_place(const KvHead& cache, int dim) {
    const int32_t row_values = 2 * cache.head_dim - cache.n_dom;
    if (is_values) return {cache.rest + (cache.head_dim - cache.n_dom + dim), row_values};
    if (dim < cache.n_dom) return {cache.dom + dim, cache.n_dom};
    return {cache.rest + (dim - cache.n_dom), row_values};
}

// Starts the copy of the keys or values of positions [first, first + n_rows) to a tile; those at and past `end` are
// again that of end - 1. Whole chunks: both planes' rows are multiples of 16 bytes, and head_dim is `dims`.
template <int dims, int n_rows, int n_threads, bool is_values>
__device__ __forceinline__ void copy_chunks(uint8_t* tile, const KvHead& cache, int32_t first, int32_t end) {
    using Layout = TileLayout<dims>;
    constexpr int n_chunks = Layout::n_chunks;
    constexpr int row_threads = n_chunks & -n_chunks;  // threads that share a row: the largest power of two
    constexpr int row_step = n_threads / row_threads;
    static_assert(n_rows % row_step == 0);
    const int row0 = static_cast<int>(threadIdx.x) / row_threads;
#pragma unroll
    for (int i = 0; i < n_chunks / row_threads; ++i) {
        const int chunk = static_cast<int>(threadIdx.x) % row_threads + i * row_threads;
        const CachePlace place = cache_place<is_values>(cache, chunk * 8);
        const auto to = [&](int row) {
            return tile + Layout::at(static_cast<uint32_t>(row), static_cast<uint32_t>(chunk));
        };
        if (first + n_rows <= end) {
            const uint16_t* from = place.at + int64_t{first + row0} * place.stride;
#pragma unroll
            for (int row = 0; row < n_rows; row += row_step) {
                ptx::copy_async_16(to(row0 + row), from);
                from += row_step * place.stride;
            }
        } else {
#pragma unroll 1
            for (int row = row0; row < n_rows; row += row_step) {
                ptx::copy_async_16(to(row), place.at + int64_t{min(first + row, end - 1)} * place.stride);
            }
        }
    }
}

// The same, at once, for any even n_dom and any even head_dim up to `dims`; zeros past it, and at and past `end`.
template <int dims, int n_rows, int n_threads, bool is_values>
__device__ __forceinline__ void copy_pairs(uint8_t* tile, const KvHead& cache, int32_t first, int32_t end) {
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < n_rows * dims / 2; i += n_threads) {
        const int row = i / (dims / 2), dim = i % (dims / 2) * 2;
        const CachePlace place = cache_place<is_values>(cache, dim);
        uint32_t pair = 0;
        if (first + row < end && dim < cache.head_dim) {
            pair = __ldg(reinterpret_cast<const uint32_t*>(place.at + int64_t{first + row} * place.stride));
        }
        const uint32_t at = TileLayout<dims>::at(static_cast<uint32_t>(row), static_cast<uint32_t>(dim / 8));
        *reinterpret_cast<uint32_t*>(tile + at + dim % 8 * 2) = pair;
    }
}

template <int dims, int n_rows, int n_threads, bool aligned, bool is_values>
__device__ __forceinline__ void copy_tile(uint8_t* tile, const KvHead& cache, int32_t first, int32_t end) {
    if constexpr (aligned) {
        copy_chunks<dims, n_rows, n_threads, is_values>(tile, cache, first, end);
    } else {
        copy_pairs<dims, n_rows, n_threads, is_values>(tile, cache, first, end);
    }
}

// Numbers that are too large for a half become its largest, so that only what is not finite stays so.
__device__ inline float within_half(float x) { return fabsf(x) <= FLT_MAX ? fminf(fmaxf(x, -65504.0f), 65504.0f) : x; }

__device__ __forceinline__ uint32_t half_pair(float x, float y) {
    const __half2 pair = __float22half2_rn({x, y});
    uint32_t bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}

__device__ __forceinline__ uint32_t query_pair(float x, float y) { return half_pair(within_half(x), within_half(y)); }

// Queries of up to n_rows rows, zeros for missing rows.
template <int dims, int n_rows, int n_threads>
__device__ __forceinline__ void load_query_chunks(uint8_t* tile, const float* q, const PrefillRows& rows) {
    using Layout = TileLayout<dims>;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < n_rows * Layout::n_chunks; i += n_threads) {
        const int row = i / Layout::n_chunks, chunk = i % Layout::n_chunks;
        float4 low = {0.0f, 0.0f, 0.0f, 0.0f}, high = low;
        if (rows.first + row < rows.end) {
            const float* from = q + rows.place(rows.first + row) * dims + chunk * 8;
            low = *reinterpret_cast<const float4*>(from);
            high = *reinterpret_cast<const float4*>(from + 4);
        }
        *reinterpret_cast<uint4*>(tile + Layout::at(static_cast<uint32_t>(row), static_cast<uint32_t>(chunk))) = {
            query_pair(low.x, low.y), query_pair(low.z, low.w), query_pair(high.x, high.y), query_pair(high.z, high.w)};
    }
}

// The same for any even number of dims up to `dims`; zeros past them.
template <int dims, int n_rows, int n_threads>
__device__ __forceinline__ void load_query_pairs(uint8_t* tile, const float* q, const PrefillRows& rows, int n_dims) {
    for (int i = static_cast<int>(threadIdx.x); i < n_rows * dims / 2; i += n_threads) {
        const int row = i / (dims / 2), dim = i % (dims / 2) * 2;
        float2 x = {0.0f, 0.0f};
        if (rows.first + row < rows.end && dim < n_dims) {
            x = *reinterpret_cast<const float2*>(q + rows.place(rows.first + row) * n_dims + dim);
        }
        const uint32_t at = TileLayout<dims>::at(static_cast<uint32_t>(row), static_cast<uint32_t>(dim / 8));
        *reinterpret_cast<uint32_t*>(tile + at + dim % 8 * 2) = query_pair(x.x, x.y);
    }
}

// The top bit of each half whose exponent is all ones.
__device__ __forceinline__ uint32_t infinite_halves(uint32_t pair) {
    return ((pair & 0x7c007c00u) + 0x04000400u) & 0x80008000u;
}

__device__ __forceinline__ uint32_t finite_only(uint32_t pair) {
    const uint32_t infinite = infinite_halves(pair);
    return pair & ~(infinite | (infinite - (infinite >> 15)));
}

// Makes zeros of what is not finite in a tile of values, since a weight of 0 would not hide it from the rows that do
// not see its position. Whether this thread found any.
template <int dims, int n_rows, int n_threads>
__device__ __forceinline__ bool drop_infinite(uint8_t* tile) {
    using Layout = TileLayout<dims>;
    bool found = false;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < n_rows * Layout::n_chunks; i += n_threads) {
        uint4& chunk =
            *reinterpret_cast<uint4*>(tile + i / Layout::n_chunks * Layout::row_bytes + i % Layout::n_chunks * 16);
        const uint4 v = chunk;
        if ((infinite_halves(v.x) | infinite_halves(v.y) | infinite_halves(v.z) | infinite_halves(v.w)) == 0) continue;
        chunk = {finite_only(v.x), finite_only(v.y), finite_only(v.z), finite_only(v.w)};
        found = true;
    }
    return found;
}

}  // namespace fasa::cuda
