// Rows of coded dominant keys (KeyCodes) of any shape, as scoring takes them.
#pragma once

#include <cstdint>

#include "backend/cuda/dominant_rows.cuh"

namespace fasa::cuda {

// Of any width: pairs of dims.
struct AnyCodes {
    static constexpr int lanes = 4;
    using Loaded = int64_t;

    KeyCodes codes;
    int part;
    const float* q;  // shared memory, [codes.n]

    __device__ AnyCodes(const Keys& keys, int lane_part) : codes(keys.codes), part(lane_part) {}

    __device__ void set_query(const SetQueries& queries, int head_dim, int set, float* shared) {
        for (int d = threadIdx.x; d < codes.n; d += blockDim.x) shared[d] = summed_query(queries, head_dim, set, d);
        q = shared;
        __syncthreads();
    }
    __device__ Loaded load(int64_t pos) const { return pos; }
    __device__ float dot(Loaded pos) const {
        const bool nibbles = codes.type == DomType::q4;
        const uint8_t* row = codes.code + pos * (nibbles ? codes.n / 2 : codes.n);
        float sum = 0;
        for (int d = 2 * part; d < codes.n; d += 2 * lanes) {
            const int a = nibbles ? (row[d / 2] & 15) - 8 : static_cast<int8_t>(row[d]);
            const int b = nibbles ? (row[d / 2] >> 4) - 8 : static_cast<int8_t>(row[d + 1]);
            sum = fmaf(q[d], static_cast<float>(a), sum);
            sum = fmaf(q[d + 1], static_cast<float>(b), sum);
        }
        return sum * __half2float(__ushort_as_half(codes.scale[pos]));
    }
};

}  // namespace fasa::cuda
