// Matrix products for many rows: weights are unpacked to half precision, as much of a matrix at a time as there is room
// for, and multiplied on tensor cores.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "backend/cuda/gemm.h"
#include "backend/cuda/runtime.h"
#include "backend/views.h"
#include "base/buffer.h"

namespace fasa::cuda {

// Rounding: x is rounded to half precision, a row scaled by a power of two of its own where its largest value would
// overflow or all are small; sums are float. F16 weights are taken as they are. BF16 and F32 weights are scaled by a
// power of two per matrix: BF16 weights are exact down to 2^-28 of the largest, F32 weights rounded to 11 bits. An
// output is off by about 2e-4 of the RMS of its row, and the logits of F32, F16 and BF16 models by less than 5e-4
// (RMS); activations in bfloat16 would give 3e-3. Quantised weights, rounded to 11 bits too, lose less than the int8
// activations of decoding do.
//
// A row's results do not depend on n nor on the rows beside it: every step here works on rows one by one, and the sums
// are taken in an order that the matrix's shape alone decides (gemm.h). So a prompt gives the same bits however it is
// cut into batches.
class LinearPrefill {
   public:
    // Weights unpacked at a time: 128 MiB, enough to keep the tensor cores busy.
    static constexpr int64_t n_unpacked_max = int64_t{1} << 26;
    static constexpr int max_products = 4;

    struct Limits {
        int n_max;           // rows of x in one call
        int64_t n_in_max;    // values in a row
        int64_t n_unpacked;  // weights unpacked at a time; as many as the largest matrix has are enough
    };
    // Device memory for the constructor.
    static size_t scratch_bytes(const Limits& limits);
    LinearPrefill(const Limits& limits, void* scratch);

    // Looks for a kernel for a matrix of the device (weights.h), and for the largest value of an F32 or BF16 matrix;
    // waits for the stream, which must not be capturing. run() does it with a matrix that it sees for the first time.
    void add(const WeightView& w, cudaStream_t stream);

    // All products share x [n][n_in], n at least n_rows_alike. 16-byte aligned are x when n_in is a multiple of 4, and
    // y when n_out is.
    void run(const LinearOut* out, int n_products, const float* x, int n, cudaStream_t stream);

   private:
    struct Scratch {
        uint16_t* x;       // [n_max][n_in_max], half precision
        float* row_scale;  // [n_max]
        uint16_t* w;       // [n_unpacked], half precision
        uint8_t* workspace;
        uint32_t* largest;  // absolute value of a matrix, its bits
        Scratch(Arena& arena, const Limits& limits);
    };
    // How a matrix is multiplied: so many of its rows at a time, by a plan for them and one for what is left.
    struct Matrix {
        int64_t n_rows;
        int plan, last_plan;
        float scale;  // of its half-precision values
    };

    Matrix make(const WeightView& w, cudaStream_t stream);
    float scale_of(const WeightView& w, cudaStream_t stream);
    const Matrix& known(const WeightView& w, cudaStream_t stream);
    void multiply(const LinearOut& out, int n, cudaStream_t stream);

    Limits limits_;
    Arena arena_;
    Scratch scratch_;
    Gemm gemm_;
    std::unordered_map<const void*, Matrix> matrices_;  // by their data
};

}  // namespace fasa::cuda
