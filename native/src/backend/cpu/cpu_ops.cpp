// The CPU backend: ops on the calling process's cores.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attention.h"
#include "backend/cpu/baselines.h"
#include "backend/cpu/elementwise_kernels.h"
#include "backend/cpu/linear.h"
#include "backend/cpu/observe.h"
#include "backend/cpu/quant.h"
#include "backend/cpu/topk.h"
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
          angles_(angle_bytes(limits), "angles"),
          sums_(sum_bytes(limits), "sums of queries"),
          n_ctx_(limits.n_ctx),
          linear_(team_, limits.n_batch, limits.n_in_max),
          attention_(team_, limits),
          topk_(team_, limits),
          observation_(team_, limits) {}

    static size_t angle_bytes(const OpsLimits& limits) {
        return sizeof(float) * static_cast<size_t>(limits.n_batch) * static_cast<size_t>(limits.head_dim);
    }

    static size_t sum_bytes(const OpsLimits& limits) {
        return sizeof(float) * static_cast<size_t>(limits.n_head) * static_cast<size_t>(limits.head_dim);
    }

    void begin(const Batch& batch) override {
        batch_ = batch;
        const RopeView& rope = batch.rope;
        cos_ = static_cast<float*>(angles_.data());
        sin_ = cos_ + int64_t{batch.rows.n} * (rope.n_rot / 2);
        float *cos = cos_, *sin = sin_;
        for (int32_t row = 0; row < batch.rows.n; ++row) {
            for (int32_t i = 0; i < rope.n_rot / 2; ++i) {
                const double angle = rope.frequency[i] * (batch.rows.pos0 + row);
                *cos++ = static_cast<float>(std::cos(angle) * rope.magnitude);
                *sin++ = static_cast<float>(std::sin(angle) * rope.magnitude);
            }
        }
    }

    void run(uint64_t, const std::function<void()>& body) override { body(); }
    void keep(uint64_t, const std::function<void()>&) override {}
    int32_t last_length(int32_t) const override { return n_ctx_; }
    void forget_runs() override {}
    void wait() override {}
    const float* on_host(const float* x, int64_t) override { return x; }
    const int32_t* on_host(const int32_t* x, int64_t) override { return x; }
    void copy(float* to, const float* from, int64_t n) override { std::copy_n(from, n, to); }

    void prepare(const WeightView&) override {}
    void embed(float* x, const WeightView& w) override {
        team_.run(batch_.rows.n, [&](int64_t i, int) {
            const auto* row = static_cast<const uint8_t*>(w.data) + static_cast<size_t>(batch_.tokens[i]) * w.row_bytes;
            dequantize_row(w.dtype, row, x + i * w.n_in, w.n_in);
        });
    }

    void linear(const LinearOut* out, int n_products, const LinearIn& in, int n) override {
        const float* x = in.x;
        if (in.norm) {
            const int64_t dim = out->w.n_in;
            for_rows(n, dim, [&](int64_t i) {
                kernels_.rms_norm(in.normed + i * dim, in.x + i * dim, in.norm, static_cast<int>(dim), in.eps);
            });
            x = in.normed;
        }
        linear_.run(out, n_products, x, n);
    }

    void linear_glu(const LinearOut& gate, const LinearOut& up, const LinearIn& in, int n) override {
        const LinearOut both[] = {gate, up};
        linear(both, 2, in, n);
        constexpr int64_t piece = 4096;
        const int64_t n_values = n * gate.w.n_out;
        for_rows((n_values + piece - 1) / piece, piece, [&](int64_t i) {
            const int64_t first = i * piece;
            kernels_.silu_mul(gate.y + first, up.y + first, std::min(piece, n_values - first));
        });
    }

    void rope_store(float* q, const float* k, const float* v, int n_head, const HeadNorm& norm, const KvView& kv,
                    Rows rows) override {
        const int head_dim = kv.head_dim;
        const RopeView& rope = batch_.rope;
        for_rows(rows.n, (n_head + 2 * kv.n_head_kv) * head_dim, [&](int64_t i) {
            const float* cos = cos_ + i * (rope.n_rot / 2);
            const float* sin = sin_ + i * (rope.n_rot / 2);
            const int group = n_head / kv.n_head_kv;
            float head[max_head_dim];
            for (int h = 0; h < n_head; ++h) {
                float* qh = q + (i * n_head + h) * head_dim;
                if (norm.q) kernels_.rms_norm(qh, qh, norm.q, head_dim, norm.eps);
                kernels_.rotate(qh, rope.layout, rope.n_rot, cos, sin);
                if (const int16_t* order = kv.order_of(h / group)) {
                    std::copy_n(qh, head_dim, head);
                    for (int d = 0; d < head_dim; ++d) qh[d] = head[order[d]];
                }
            }
            for (int h = 0; h < kv.n_head_kv; ++h) {
                const int64_t from = (i * kv.n_head_kv + h) * head_dim;
                const int32_t pos = rows.pos0 + static_cast<int32_t>(i);
                float key[max_head_dim];
                if (norm.k) {
                    kernels_.rms_norm(head, k + from, norm.k, head_dim, norm.eps);
                } else {
                    std::copy_n(k + from, head_dim, head);
                }
                kernels_.rotate(head, rope.layout, rope.n_rot, cos, sin);
                const int16_t* order = kv.order_of(h);
                for (int d = 0; d < head_dim; ++d) key[d] = head[order ? order[d] : d];
                uint16_t* row = kv.rest_at(rows.seq, h, pos);
                kernels_.to_half(kv.dom_at(rows.seq, h, pos), key, kv.n_dom);
                kernels_.to_half(row, key + kv.n_dom, head_dim - kv.n_dom);
                kernels_.to_half(row + head_dim - kv.n_dom, v + from, head_dim);
                if (kv.is_coded()) {
                    const KeyCodes codes = kv.codes_at(rows.seq, h, pos);
                    kernels_.encode(codes.code, codes.scale, row, codes.type, codes.n);
                }
            }
        });
    }

    void attend_dense(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows) override {
        attention_.dense(y, q, n_head, scale, kv, rows);
    }

    void attend_selected(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                         const Selection& selection) override {
        attention_.selected(y, q, n_head, scale, kv, seq, selection);
    }

    void token_scores(float* scores, const SetQueries& queries, const KvView& kv, int32_t seq, int32_t n_pos,
                      bool whole_key, const Budget*) override {
        const int64_t n = int64_t{queries.n_head} * kv.head_dim, of_set = n / queries.n_set;
        auto* sums = static_cast<float*>(sums_.data());
        std::fill_n(sums, int64_t{queries.n_set} * kv.head_dim, 0.0f);
        for (int64_t i = 0; i < n; ++i) {
            if (!queries.mask || queries.mask[i] != 0) sums[i / of_set * kv.head_dim + i % kv.head_dim] += queries.q[i];
        }
        attention_.scores(scores, sums, queries.n_set, kv, seq, n_pos, whole_key);
    }

    void topk(const float* scores, int32_t n_pos, const Budget& budget, Selection& selection) override {
        topk_.run(scores, n_pos, budget.keep, budget.n_sink, budget.n_recent, selection);
    }

    void attention_mass(float* mass, int n_set, const float* q, int n_head, float scale, const KvView& kv,
                        Rows rows) override {
        observation_.attention_mass(mass, n_set, q, n_head, scale, kv, rows);
    }

    void selected_mass(float* mass, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                       const Selection& selection) override {
        observation_.selected_mass(mass, q, n_head, scale, kv, seq, selection);
    }

    void page_bounds(uint16_t* bounds, const KvView& kv, int32_t seq, int32_t page, int32_t first_page, int32_t n_pos,
                     PageBounds kind) override {
        observation_.page_bounds(bounds, kv, seq, page, first_page, n_pos, kind);
    }

    void key_similarity(float* similarity, const KvView& kv, int32_t seq, int32_t n_pos) override {
        observation_.key_similarity(similarity, kv, seq, n_pos);
    }

    void clear_scores(float* scores, int n_set, int32_t first, int32_t n) override {
        cpu::clear_scores(scores, n_set, n_ctx_, first, n);
    }
    void keep_listed(float* scores, int32_t n_pos, const Selection& selection) override {
        cpu::keep_listed(scores, n_ctx_, n_pos, selection);
    }
    void average_pages(float* scores, int n_set, int32_t page, int32_t n_pos) override {
        cpu::average_pages(scores, n_set, n_ctx_, page, n_pos);
    }
    void expand_pages(Selection& selection, int32_t page, int32_t n_pos) override {
        cpu::expand_pages(selection, page, n_pos);
    }
    void bound_queries(float* bounds, int n_set, const float* q, int n_head, int head_dim) override {
        cpu::bound_queries(bounds, n_set, q, n_head, head_dim);
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
    Batch batch_;
    Buffer angles_, sums_;
    float *cos_ = nullptr, *sin_ = nullptr;  // [n][n_rot / 2]
    int32_t n_ctx_;
    Linear linear_;
    Attention attention_;
    TopK topk_;
    Observation observation_;
};

class CpuDevice final : public Device {
   public:
    explicit CpuDevice(int n_threads) : n_threads_(n_threads > 0 ? n_threads : processor().n_cores) {}

    std::string name() const override {
        return "cpu (" + cpu_info().name + ", " + std::to_string(n_threads_) +
               (n_threads_ == 1 ? " thread)" : " threads)");
    }
    int n_threads() const override { return n_threads_; }
    int32_t break_even(uint64_t) const override { return 512; }
    Buffer buffer(size_t n_bytes, const char* what) const override { return {n_bytes, what}; }
    Buffer host_buffer(size_t n_bytes, const char* what) const override { return {n_bytes, what}; }
    void copy(void* to, const void* from, size_t n_bytes) const override {
        if (n_bytes > 0) std::memcpy(to, from, n_bytes);
    }
    bool has_own_memory() const override { return false; }
    uint64_t system_bytes() const override { return 0; }
    uint64_t memory_available() const override { return fasa::memory_available(); }
    size_t weight_bytes(const WeightView&) const override { return 0; }
    void upload(std::span<const Upload>, const std::function<void(size_t)>&) const override {}
    std::unique_ptr<Ops> make_ops(const OpsLimits& limits) const override {
        return std::make_unique<CpuOps>(limits, n_threads_);
    }
    OpsBytes ops_bytes(const OpsLimits& limits) const override {
        return {CpuOps::angle_bytes(limits) + CpuOps::sum_bytes(limits) +
                    Linear::scratch_bytes(n_threads_, limits.n_batch, limits.n_in_max) +
                    Attention::scratch_bytes(limits, n_threads_) + TopK::scratch_bytes(limits, n_threads_) +
                    Observation::scratch_bytes(limits, n_threads_),
                0, 0};
    }

   private:
    int n_threads_;
};

}  // namespace
}  // namespace cpu

std::unique_ptr<Device> make_cpu_device(int n_threads) { return std::make_unique<cpu::CpuDevice>(n_threads); }

}  // namespace fasa
