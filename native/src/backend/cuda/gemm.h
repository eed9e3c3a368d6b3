// Products of half-precision matrices on tensor cores, with float sums, by cuBLASLt.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fasa::cuda {

// y[i][r] = alpha * (x[i] . w[r]) + beta * y[i][r]. w [n_out][w_stride], x [n][n_in], y [n][y_stride], of which the
// first n_out values of a row are written.
//
// cuBLASLt would choose by the number of rows among kernels that add in different orders. A plan takes its choice for
// many rows, among kernels that sum over all of n_in in one sequence, and stays with it for every n, from n_rows_alike
// (views.h) up: so a row's result does not depend on the rows beside it. It is the same for every batch size of a
// context too.
class Gemm {
   public:
    Gemm();
    ~Gemm();

    // Pointers and strides (in values) of w and x must be multiples of 16 bytes, and n_in of 8 values. y may be aligned
    // to 4 bytes only.
    struct Shape {
        int64_t n_out, n_in, w_stride, y_stride;
        bool operator==(const Shape&) const = default;
    };
    // Finds or makes the plan of a shape. Not while a stream captures. Plans live as long as the Gemm.
    int plan(const Shape& shape);

    // workspace: workspace_bytes of device memory, 256-byte aligned, for this launch.
    void run(int plan, float* y, const uint16_t* w, const uint16_t* x, int n, float alpha, float beta, void* workspace,
             cudaStream_t stream);

    static constexpr size_t workspace_bytes = size_t{4} << 20;

   private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace fasa::cuda
