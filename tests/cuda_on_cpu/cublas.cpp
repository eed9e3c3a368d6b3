// The place of native/src/backend/cuda/cublas.cpp.
#include "backend/cuda/cublas.h"

#include "base/half.h"
#include "queue.h"

struct cublasLtContext {};
struct cublasLtMatmulPreferenceOpaque_t {};
struct cublasLtMatmulDescOpaque_t {
    int32_t transposed_a = CUBLAS_OP_N, transposed_b = CUBLAS_OP_N;
};
// Column-major: value (row, column) lies at row + stride * column.
struct cublasLtMatrixLayoutOpaque_t {
    cudaDataType type;
    uint64_t rows, columns;
    int64_t stride;
};

namespace {

using Layout = cublasLtMatrixLayoutOpaque_t;
using Product = cublasLtMatmulDescOpaque_t;

template <class T>
cublasStatus_t make(T** p, const T& value) {
    *p = new T(value);
    return CUBLAS_STATUS_SUCCESS;
}
template <class T>
cublasStatus_t destroy(T* p) {
    delete p;
    return CUBLAS_STATUS_SUCCESS;
}
template <class T>
cublasStatus_t assign(T& to, const void* value, size_t n_bytes) {
    if (n_bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&to, value, n_bytes);
    return CUBLAS_STATUS_SUCCESS;
}

uint64_t rows(const Layout& matrix, bool transposed) { return transposed ? matrix.columns : matrix.rows; }
uint64_t columns(const Layout& matrix, bool transposed) { return transposed ? matrix.rows : matrix.columns; }

bool fit(const Product& p, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    const bool types = a.type == CUDA_R_16F && b.type == CUDA_R_16F && c.type == CUDA_R_32F && d.type == CUDA_R_32F;
    const auto is_wide = [](const Layout& m) { return m.stride >= static_cast<int64_t>(m.rows); };
    return types && is_wide(a) && is_wide(b) && is_wide(c) && is_wide(d) && rows(a, p.transposed_a) == d.rows &&
           columns(b, p.transposed_b) == d.columns && columns(a, p.transposed_a) == rows(b, p.transposed_b) &&
           c.rows == d.rows && c.columns == d.columns;
}

float half_at(const void* data, const Layout& m, bool transposed, uint64_t row, uint64_t column) {
    const uint64_t at =
        transposed ? column + static_cast<uint64_t>(m.stride) * row : row + static_cast<uint64_t>(m.stride) * column;
    return fasa::half_to_float(static_cast<const uint16_t*>(data)[at]);
}

const float* column_of(const void* data, const Layout& m, uint64_t column) {
    return static_cast<const float*>(data) + static_cast<uint64_t>(m.stride) * column;
}

}  // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { return make(handle, {}); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return destroy(handle); }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* product, cublasComputeType_t, cudaDataType) {
    return make(product, {});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) { return destroy(product); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t n_bytes) {
    return assign(attribute == CUBLASLT_MATMUL_DESC_TRANSA ? product->transposed_a : product->transposed_b, value,
                  n_bytes);
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* matrix, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t stride) {
    return make(matrix, {type, rows, columns, stride});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t matrix) { return destroy(matrix); }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t matrix,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                size_t n_bytes) {
    if (attribute == CUBLASLT_MATRIX_LAYOUT_LD) return assign(matrix->stride, value, n_bytes);
    return assign(attribute == CUBLASLT_MATRIX_LAYOUT_ROWS ? matrix->rows : matrix->columns, value, n_bytes);
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) { return make(preference, {}); }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { return destroy(preference); }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
                                                    const void*, size_t) {
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t, int n_asked,
                                              cublasLtMatmulHeuristicResult_t* results, int* n_results) {
    *n_results = 0;
    if (n_asked < 1) return CUBLAS_STATUS_INVALID_VALUE;
    const cublasStatus_t status = cublasLtMatmulAlgoCheck(handle, product, a, b, c, d, &results[0].algo, results);
    if (status == CUBLAS_STATUS_SUCCESS) *n_results = 1;
    return status;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t*, cublasLtMatmulHeuristicResult_t* result) {
    *result = {};
    result->state = fit(*product, *a, *b, *c, *d) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
    return result->state;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t*, cublasLtMatmulAlgoConfigAttributes_t,
                                                    void* value, size_t n_bytes, size_t* n_written) {
    std::memset(value, 0, n_bytes);
    if (n_written) *n_written = n_bytes;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t*, void*, size_t,
                              cudaStream_t stream) {
    if (!fit(*product, *a_layout, *b_layout, *c_layout, *d_layout)) return CUBLAS_STATUS_INVALID_VALUE;
    const auto work = [=, p = *product, la = *a_layout, lb = *b_layout, lc = *c_layout, ld = *d_layout,
                       by = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta)] {
        const uint64_t n_inner = columns(la, p.transposed_a);
        for (uint64_t column = 0; column < ld.columns; ++column) {
            const float* from = column_of(c, lc, column);
            float* to = static_cast<float*>(d) + static_cast<uint64_t>(ld.stride) * column;
            for (uint64_t row = 0; row < ld.rows; ++row) {
                float sum = 0;
                for (uint64_t k = 0; k < n_inner; ++k) {
                    sum += half_at(a, la, p.transposed_a, row, k) * half_at(b, lb, p.transposed_b, k, column);
                }
                to[row] = by * sum + (keep == 0 ? 0 : keep * from[row]);
            }
        }
    };
    return on_cpu::enqueue(work, stream) == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

namespace fasa::cuda {

const CublasLt& cublas_lt() {
#define FASA_ADDRESS(name) ::name,
    static const CublasLt lt = {FASA_CUBLAS_LT_FUNCTIONS(FASA_ADDRESS)};
#undef FASA_ADDRESS
    return lt;
}

}  // namespace fasa::cuda
