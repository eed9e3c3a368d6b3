// Weight matrices of any type in device memory: their size, how they get there, and rows of them as activations. The
// layout is in weights.cuh. A WeightView of such a matrix has row_bytes = device_row_bytes and n_out * row_bytes bytes
// at a 16-byte aligned address.
#pragma once

#include <functional>

#include "backend/cuda/runtime.h"
#include "backend/views.h"

namespace fasa::cuda {

// Bytes of a row of n_in values (a multiple of the block): the file's, rounded up to 16.
size_t device_row_bytes(DType type, int64_t n_in);

// Memory that weights pass through on their way: page-locked on the host, and as much on the device.
struct Staging {
    void* host;
    void* device;
    size_t n_bytes;  // at least a block of every type, 256 bytes; some MiB to be fast
};

// Copies a matrix as it lies in the file to the device, at `to`, and gives its view there. Calls progress with the
// bytes of the file done since its last call, from time to time; what it throws ends the upload. Returns when the copy
// is complete.
WeightView upload(void* to, const WeightView& w, const Staging& staging, cudaStream_t stream,
                  const std::function<void(size_t)>& progress);

// x[i] = row token[i] of w. x [n][n_in], token [n], all on the device.
void embed(float* x, const WeightView& w, const int32_t* token, int n, cudaStream_t stream);

}  // namespace fasa::cuda
