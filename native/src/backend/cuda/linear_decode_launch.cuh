// For the files that hold the kernels of linear_decode.cuh, one for each number of rows held.
#pragma once

#include "backend/cuda/linear_decode.cuh"

namespace fasa::cuda::decode {

template <int N>
void launch_products(Launch how, const Job& job, bool mixed) {
    if (mixed) {
        launch(how, products_of_types<N>, job);
    } else {
        with_type(job.product[0].dtype, [&]<DType T>() { launch(how, products_of_type<T, N>, job); });
    }
}

}  // namespace fasa::cuda::decode
