#include "backend/cuda/weights.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/repack.cuh"
#include "backend/cuda/weights.cuh"
#include "base/error.h"

namespace fasa::cuda {

namespace {

constexpr int N_THREADS = 128;
constexpr int VALUES_PER_THREAD = 8;  // of an embedding

unsigned n_blocks_for(int64_t n) { return static_cast<unsigned>((n + N_THREADS - 1) / N_THREADS); }

template <DType T>
struct BlockOf;
template <>
struct BlockOf<FASA_DTYPE_Q4_0> : BlockQ4_0 {};
template <>
struct BlockOf<FASA_DTYPE_Q4_1> : BlockQ4_1 {};
template <>
struct BlockOf<FASA_DTYPE_Q5_0> : BlockQ5_0 {};
template <>
struct BlockOf<FASA_DTYPE_Q5_1> : BlockQ5_1 {};
template <>
struct BlockOf<FASA_DTYPE_Q8_0> : BlockQ8_0 {};
template <>
struct BlockOf<FASA_DTYPE_Q2_K> : BlockQ2_K {};
template <>
struct BlockOf<FASA_DTYPE_Q3_K> : BlockQ3_K {};
template <>
struct BlockOf<FASA_DTYPE_Q4_K> : BlockQ4_K {};
template <>
struct BlockOf<FASA_DTYPE_Q5_K> : BlockQ5_K {};
template <>
struct BlockOf<FASA_DTYPE_Q6_K> : BlockQ6_K {};
template <>
struct BlockOf<FASA_DTYPE_IQ4_NL> : BlockIQ4_NL {};
template <>
struct BlockOf<FASA_DTYPE_IQ4_XS> : BlockIQ4_XS {};

// Some blocks of a matrix, lying one after the other at `blocks` as in the file, into rows of n_slices slices. The
// first one is block `first` of the matrix.
template <DType T>
__global__ void repack_blocks(uint8_t* to, size_t row_bytes, int n_slices, const BlockOf<T>* blocks, int64_t first,
                              int64_t n) {
    const int64_t i = int64_t{blockIdx.x} * N_THREADS + threadIdx.x;
    if (i >= n) return;
    constexpr int slices = sizeof(BlockOf<T>) > sizeof(BlockQ8_0) ? QK_K / 32 : 1;  // of a block
    const int64_t slice = (first + i) * slices, row = slice / n_slices;
    repack(blocks[i], to + static_cast<size_t>(row) * row_bytes, n_slices, static_cast<int>(slice - row * n_slices));
}

// The same for float types, whose rows only get their ends padded; in units of two bytes.
__global__ void pad_rows(uint8_t* to, size_t row_bytes, int64_t row_units, const uint16_t* units, int64_t first,
                         int64_t n) {
    const int64_t i = int64_t{blockIdx.x} * N_THREADS + threadIdx.x;
    if (i >= n) return;
    const int64_t row = (first + i) / row_units;
    put(to + static_cast<size_t>(row) * row_bytes + 2 * (first + i - row * row_units), units[i]);
}

// Blocks first to first + n - 1 of the matrix lie in the device's staging memory.
template <DType T>
void place(uint8_t* to, const WeightView& w, const void* staged, int64_t first, int64_t n, cudaStream_t stream) {
    const size_t row_bytes = device_row_bytes(T, w.n_in);
    if constexpr (is_float_type<T>) {
        const int64_t units = T == FASA_DTYPE_F32 ? 2 : 1;
        launch({"pad_rows", dim3(n_blocks_for(n * units)), dim3(N_THREADS), 0, stream}, pad_rows, to, row_bytes,
               w.n_in * units, static_cast<const uint16_t*>(staged), first * units, n * units);
    } else {
        launch({"repack_blocks", dim3(n_blocks_for(n)), dim3(N_THREADS), 0, stream}, repack_blocks<T>, to, row_bytes,
               static_cast<int>(w.n_in / 32), static_cast<const BlockOf<T>*>(staged), first, n);
    }
}

template <DType T>
__global__ void embed_rows(float* x, const uint8_t* w, size_t row_bytes, int64_t n_in, const int32_t* token) {
    ptx::wait_for_previous();
    ptx::start_next();
    const int64_t k = (int64_t{blockIdx.x} * N_THREADS + threadIdx.x) * VALUES_PER_THREAD;
    if (k >= n_in) return;
    float v[VALUES_PER_THREAD];
    dequantize<T, VALUES_PER_THREAD>(w + static_cast<size_t>(token[blockIdx.y]) * row_bytes, n_in, k, v);
    float* out = x + blockIdx.y * n_in + k;
    for (int i = 0; i < VALUES_PER_THREAD; ++i) {
        if (k + i < n_in) out[i] = v[i];
    }
}

void require_supported(DType type) {
    if (!dtype_traits(type).name)
        fail(FASA_ERROR_UNSUPPORTED, "tensor type %d is not supported", static_cast<int>(type));
}

}  // namespace

size_t device_row_bytes(DType type, int64_t n_in) {
    require_supported(type);
    return (dtype_row_bytes(type, n_in) + 15) & ~size_t{15};
}

WeightView upload(void* to, const WeightView& w, const Staging& staging, cudaStream_t stream,
                  const std::function<void(size_t)>& progress) {
    require_supported(w.dtype);
    const DTypeTraits traits = dtype_traits(w.dtype);
    WeightView result = w;
    result.data = to;
    result.row_bytes = device_row_bytes(w.dtype, w.n_in);
    if (traits.block_values == 1 && result.row_bytes != w.row_bytes) {
        check(cudaMemsetAsync(to, 0, result.n_bytes(), stream), "clearing the end of weight rows");
    }
    const int64_t n_blocks = w.n_in / traits.block_values * w.n_out;
    const int64_t n_at_once = static_cast<int64_t>(staging.n_bytes / traits.block_bytes);
    for (int64_t first = 0; first < n_blocks; first += n_at_once) {
        const int64_t n = std::min(n_at_once, n_blocks - first);
        const size_t n_bytes = static_cast<size_t>(n) * traits.block_bytes;
        const auto* from = static_cast<const uint8_t*>(w.data) + static_cast<size_t>(first) * traits.block_bytes;
        std::memcpy(staging.host, from, n_bytes);
        check(cudaMemcpyAsync(staging.device, staging.host, n_bytes, cudaMemcpyHostToDevice, stream),
              "copying weights to the device");
        with_type(w.dtype,
                  [&]<DType T>() { place<T>(static_cast<uint8_t*>(to), w, staging.device, first, n, stream); });
        check(cudaStreamSynchronize(stream), "copying weights to the device");
        if (progress) progress(n_bytes);
    }
    return result;
}

void embed(float* x, const WeightView& w, const int32_t* token, int n, cudaStream_t stream) {
    require_supported(w.dtype);
    with_type(w.dtype, [&]<DType T>() {
        const unsigned parts = n_blocks_for((w.n_in + VALUES_PER_THREAD - 1) / VALUES_PER_THREAD);
        launch({"embed_rows", dim3(parts, static_cast<unsigned>(n)), dim3(N_THREADS), 0, stream, true}, embed_rows<T>,
               x, static_cast<const uint8_t*>(w.data), w.row_bytes, w.n_in, token);
    });
}

}  // namespace fasa::cuda
