// The matrix products of the CPU backend: y = x Wᵀ on weights as they lie in the file.
#pragma once

#include <cstdint>
#include <memory>

#include "backend/views.h"
#include "base/team.h"

namespace fasa::cpu {

// Holds the scratch for quantised activations and unpacked weight tiles, taken once; run() allocates nothing.
class Linear {
   public:
    // n_max: rows of x in one call; n_in_max: values in a row. Throws Error(UNSUPPORTED) for rows of more than 2^24
    // values.
    Linear(Team& team, int n_max, int64_t n_in_max);
    ~Linear();

    // All products share the input x [n][n_in], so it is quantised at most once. Products are run as one loop of the
    // team.
    void run(const LinearOut* out, int n_products, const float* x, int n);

    // Bytes the constructor takes for these arguments.
    static size_t scratch_bytes(int n_threads, int n_max, int64_t n_in_max);

   private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace fasa::cpu
