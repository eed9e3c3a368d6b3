// For the files that hold the kernels of linear_decode.cuh, one for each number of rows held and team.
#pragma once

#include "backend/cuda/linear_decode.cuh"

namespace fasa::cuda::decode {

template <int N, Team TEAM>
void launch_products(Launch how, const Job& job, bool mixed) {
    if constexpr (TEAM == Team::few) {
        if (mixed) return launch(how, products_of_types<N>, job);
    }
    with_type(job.product[0].dtype, [&]<DType T>() { launch(how, products_of_type<T, N, TEAM>, job); });
}

}  // namespace fasa::cuda::decode
