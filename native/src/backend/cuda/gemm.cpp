#include "backend/cuda/gemm.h"

#include <cublasLt.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "backend/cuda/cublas.h"
#include "backend/cuda/runtime.h"
#include "backend/views.h"
#include "base/error.h"

namespace fasa::cuda {
namespace {

constexpr uint64_t n_planned = 2048;  // rows that plans are made for
constexpr int n_candidates = 16;

void check_lt(cublasStatus_t status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS) {
        fail(status == CUBLAS_STATUS_ALLOC_FAILED ? FASA_ERROR_MEMORY : FASA_ERROR_DEVICE, "cuBLASLt, %s: status %d",
             what, static_cast<int>(status));
    }
}

// Frees what cuBLASLt made.
struct Destroy {
    void operator()(cublasLtHandle_t p) const { cublas_lt().cublasLtDestroy(p); }
    void operator()(cublasLtMatmulDesc_t p) const { cublas_lt().cublasLtMatmulDescDestroy(p); }
    void operator()(cublasLtMatrixLayout_t p) const { cublas_lt().cublasLtMatrixLayoutDestroy(p); }
    void operator()(cublasLtMatmulPreference_t p) const { cublas_lt().cublasLtMatmulPreferenceDestroy(p); }
};
template <class Pointer>
using Owned = std::unique_ptr<std::remove_pointer_t<Pointer>, Destroy>;

struct Plan {
    Gemm::Shape shape;
    Owned<cublasLtMatrixLayout_t> w, x, y;  // column-major, as cuBLAS has it: n_in x n_out, n_in x n, n_out x n
    cublasLtMatmulAlgo_t algo;
};

}  // namespace

struct Gemm::Impl {
    const CublasLt& lt = cublas_lt();
    Owned<cublasLtHandle_t> handle;
    Owned<cublasLtMatmulDesc_t> product;
    std::vector<Plan> plans;

    Impl() {
        cublasLtHandle_t new_handle = nullptr;
        check_lt(lt.cublasLtCreate(&new_handle), "starting");
        handle.reset(new_handle);
        cublasLtMatmulDesc_t new_product = nullptr;
        check_lt(lt.cublasLtMatmulDescCreate(&new_product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
        product.reset(new_product);
        const int32_t transposed = CUBLAS_OP_T;
        check_lt(lt.cublasLtMatmulDescSetAttribute(product.get(), CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                   sizeof(transposed)),
                 "describing a product");
    }

    Owned<cublasLtMatrixLayout_t> layout(cudaDataType_t type, int64_t rows, uint64_t columns, int64_t stride) const {
        cublasLtMatrixLayout_t result = nullptr;
        check_lt(lt.cublasLtMatrixLayoutCreate(&result, type, static_cast<uint64_t>(rows), columns, stride),
                 "describing a matrix");
        return Owned<cublasLtMatrixLayout_t>(result);
    }
    void set_columns(cublasLtMatrixLayout_t matrix, uint64_t n) const {
        check_lt(lt.cublasLtMatrixLayoutSetAttribute(matrix, CUBLASLT_MATRIX_LAYOUT_COLS, &n, sizeof(n)),
                 "setting the number of rows");
    }
    void set_rows_of_x(const Plan& plan, uint64_t n) const {
        set_columns(plan.x.get(), n);
        set_columns(plan.y.get(), n);
    }

    // The candidate works for so many rows in the workspace that there is.
    bool works(const Plan& plan, const cublasLtMatmulAlgo_t& algo, uint64_t n) const {
        set_rows_of_x(plan, n);
        cublasLtMatmulHeuristicResult_t result = {};
        return lt.cublasLtMatmulAlgoCheck(handle.get(), product.get(), plan.w.get(), plan.x.get(), plan.y.get(),
                                          plan.y.get(), &algo, &result) == CUBLAS_STATUS_SUCCESS &&
               result.workspaceSize <= workspace_bytes;
    }

    void choose(Plan& plan) const;
};

namespace {

bool in_one_sequence(const CublasLt& lt, const cublasLtMatmulAlgo_t& algo) {
    int32_t n_splits = 0;
    uint32_t reduction = 0;
    size_t written = 0;
    return lt.cublasLtMatmulAlgoConfigGetAttribute(&algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &n_splits, sizeof(n_splits),
                                                   &written) == CUBLAS_STATUS_SUCCESS &&
           lt.cublasLtMatmulAlgoConfigGetAttribute(&algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                                   sizeof(reduction), &written) == CUBLAS_STATUS_SUCCESS &&
           n_splits <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
}

}  // namespace

void Gemm::Impl::choose(Plan& plan) const {
    cublasLtMatmulPreference_t new_preference = nullptr;
    check_lt(lt.cublasLtMatmulPreferenceCreate(&new_preference), "describing a search");
    const Owned<cublasLtMatmulPreference_t> preference(new_preference);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
        check_lt(lt.cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
                 "describing a search");
    };
    const uint32_t y_alignment = plan.shape.y_stride % 4 == 0 ? 16 : 4;
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_bytes});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t{16});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t{16});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y_alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y_alignment);

    cublasLtMatmulHeuristicResult_t candidates[n_candidates];
    int n = 0;
    check_lt(lt.cublasLtMatmulAlgoGetHeuristic(handle.get(), product.get(), plan.w.get(), plan.x.get(), plan.y.get(),
                                               plan.y.get(), preference.get(), n_candidates, candidates, &n),
             "looking for a kernel");
    for (const auto& candidate : std::vector(candidates, candidates + n)) {
        if (candidate.state == CUBLAS_STATUS_SUCCESS && in_one_sequence(lt, candidate.algo) &&
            works(plan, candidate.algo, n_rows_alike) && works(plan, candidate.algo, n_planned + 1)) {
            plan.algo = candidate.algo;
            return;
        }
    }
    fail(FASA_ERROR_DEVICE, "cuBLASLt has no kernel for products with weights of %lld x %lld values",
         static_cast<long long>(plan.shape.n_out), static_cast<long long>(plan.shape.n_in));
}

Gemm::Gemm() : impl_(std::make_unique<Impl>()) {}
Gemm::~Gemm() = default;

int Gemm::plan(const Shape& shape) {
    std::vector<Plan>& plans = impl_->plans;
    const auto known = std::find_if(plans.begin(), plans.end(), [&](const Plan& p) { return p.shape == shape; });
    if (known != plans.end()) return static_cast<int>(known - plans.begin());

    Plan plan{shape, {}, {}, {}, {}};
    plan.w = impl_->layout(CUDA_R_16F, shape.n_in, static_cast<uint64_t>(shape.n_out), shape.w_stride);
    plan.x = impl_->layout(CUDA_R_16F, shape.n_in, n_planned, shape.n_in);
    plan.y = impl_->layout(CUDA_R_32F, shape.n_out, n_planned, shape.y_stride);
    impl_->choose(plan);
    plans.push_back(std::move(plan));
    return static_cast<int>(plans.size()) - 1;
}

void Gemm::run(int plan, float* y, const uint16_t* w, const uint16_t* x, int n, float alpha, float beta,
               void* workspace, cudaStream_t stream) {
    const Plan& p = impl_->plans[static_cast<size_t>(plan)];
    impl_->set_rows_of_x(p, static_cast<uint64_t>(n));
    check_lt(impl_->lt.cublasLtMatmul(impl_->handle.get(), impl_->product.get(), &alpha, w, p.w.get(), x, p.x.get(),
                                      &beta, y, p.y.get(), y, p.y.get(), &p.algo, workspace, workspace_bytes, stream),
             "multiplying matrices");
    launched(cudaSuccess, stream, "cublasLtMatmul");
}

}  // namespace fasa::cuda
