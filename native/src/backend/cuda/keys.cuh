// The keys of one KV head on the device, both planes.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/views.h"

namespace fasa::cuda {

// KeyCodes::at
__device__ inline KeyCodes codes_at(const KeyCodes& codes, int64_t row) {
    const int64_t row_bytes = codes.type == DomType::q4 ? codes.n / 2 : codes.n;
    return {codes.type, codes.n, codes.code + row * row_bytes, codes.scale + row};
}

struct Keys {
    const uint16_t* dom;   // [n_ctx][n_dom]
    const uint16_t* rest;  // [n_ctx][row_values], its first n_rest values belong to the key
    int32_t n_dom, n_rest, row_values;
    KeyCodes codes;

    // Those of the KV head that set number `set` of n_set looks at.
    __device__ Keys(const KvView& kv, int32_t seq, int32_t set, int32_t n_set) {
        const int32_t head_kv = set * kv.n_head_kv / n_set;  // a division of 64 bits would take long
        const int64_t row = (int64_t{seq} * kv.n_head_kv + head_kv) * kv.n_ctx;
        n_dom = kv.n_dom;
        n_rest = kv.head_dim - kv.n_dom;
        row_values = 2 * kv.head_dim - kv.n_dom;
        dom = kv.dom + row * n_dom;
        rest = kv.rest + row * row_values;
        codes = codes_at(kv.codes, row);
    }
    // Dim d of the key at pos, in the order of the cache.
    __device__ float value(int64_t pos, int d) const {
        const uint16_t* at = d < n_dom ? dom + pos * n_dom + d : rest + pos * row_values + (d - n_dom);
        return __half2float(__ushort_as_half(*at));
    }
};

}  // namespace fasa::cuda
