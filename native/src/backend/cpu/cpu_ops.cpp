// The CPU backend: ops on the calling process's cores.
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attention.h"
#include "backend/cpu/elementwise_kernels.h"
#include "backend/cpu/linear.h"
#include "backend/cpu/quant.h"
#include "base/cpu.h"
#include "base/team.h"

namespace fasa {
namespace cpu {

const ElementwiseKernels& elementwise_kernels([[maybe_unused]] Isa isa) {
#if FASA_X86
    if (isa == Isa::avx512) return avx512::elementwise;
    if (isa == Isa::avx2) return avx2::elementwise;
#endif
    return scalar::elementwise;
}

namespace {

class CpuOps final : public Ops {
   public:
    CpuOps(const OpsLimits& limits, int n_threads)
        : kernels_(elementwise_kernels(cpu_info().isa)),
          team_(n_threads),
          linear_(team_, limits.n_batch, limits.n_in_max),
          attention_(team_, limits) {}

    void embed(float* x, const WeightView& w, const int32_t* token, int n) override {
        team_.run(n, [&](int64_t i, int) {
            const auto* row = static_cast<const uint8_t*>(w.data) + static_cast<size_t>(token[i]) * w.row_bytes;
            dequantize_row(w.dtype, row, x + i * w.n_in, w.n_in);
        });
    }

    void rms_norm(float* y, const float* x, const float* weight, int64_t n_rows, int dim, float eps) override {
        for_rows(n_rows, dim, [&](int64_t i) { kernels_.rms_norm(y + i * dim, x + i * dim, weight, dim, eps); });
    }

    void linear(const LinearOut* out, int n_products, const float* x, int n) override {
        linear_.run(out, n_products, x, n);
    }

    void rope_store(float* q, const float* k, const float* v, int n_head, const RopeView& rope, const KvView& kv,
                    Rows rows) override {
        const int head_dim = kv.head_dim;
        for_rows(rows.n, (n_head + 2 * kv.n_head_kv) * head_dim, [&](int64_t i) {
            const float* cos = rope.cos + i * (rope.n_rot / 2);
            const float* sin = rope.sin + i * (rope.n_rot / 2);
            for (int h = 0; h < n_head; ++h) {
                kernels_.rotate(q + (i * n_head + h) * head_dim, rope.layout, rope.n_rot, cos, sin);
            }
            for (int h = 0; h < kv.n_head_kv; ++h) {
                const int64_t from = (i * kv.n_head_kv + h) * head_dim;
                uint16_t* row = kv.row(rows.seq, h, rows.pos0 + static_cast<int32_t>(i));
                float key[max_head_dim];
                for (int d = 0; d < head_dim; ++d) key[d] = k[from + d];
                kernels_.rotate(key, rope.layout, rope.n_rot, cos, sin);
                kernels_.to_half(row, key, head_dim);
                kernels_.to_half(row + head_dim, v + from, head_dim);
            }
        });
    }

    void attend_dense(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows) override {
        attention_.run(y, q, n_head, scale, kv, rows);
    }

    void glu(float* gate, const float* up, int64_t n) override {
        constexpr int64_t piece = 4096;
        for_rows((n + piece - 1) / piece, piece, [&](int64_t i) {
            const int64_t first = i * piece;
            kernels_.silu_mul(gate + first, up + first, n - first < piece ? n - first : piece);
        });
    }

   private:
    static constexpr int64_t parallel_values = 32768;  // below this much work waking the team costs more than it saves

    template <class F>
    void for_rows(int64_t n_rows, int64_t row_values, F&& f) {
        if (n_rows * row_values < parallel_values) {
            for (int64_t i = 0; i < n_rows; ++i) f(i);
        } else {
            team_.run(n_rows, [&](int64_t i, int) { f(i); });
        }
    }

    const ElementwiseKernels& kernels_;
    Team team_;
    Linear linear_;
    Attention attention_;
};

class CpuDevice final : public Device {
   public:
    explicit CpuDevice(int n_threads) : n_threads_(n_threads > 0 ? n_threads : processor().n_cores) {}

    std::string name() const override {
        return "cpu (" + cpu_info().name + ", " + std::to_string(n_threads_) +
               (n_threads_ == 1 ? " thread)" : " threads)");
    }
    int n_threads() const override { return n_threads_; }
    std::unique_ptr<Ops> make_ops(const OpsLimits& limits) const override {
        return std::make_unique<CpuOps>(limits, n_threads_);
    }
    size_t ops_bytes(const OpsLimits& limits) const override {
        return Linear::scratch_bytes(n_threads_, limits.n_batch, limits.n_in_max) +
               Attention::scratch_bytes(limits, n_threads_);
    }

   private:
    int n_threads_;
};

}  // namespace
}  // namespace cpu

std::unique_ptr<Device> make_cpu_device(int n_threads) { return std::make_unique<cpu::CpuDevice>(n_threads); }

}  // namespace fasa
