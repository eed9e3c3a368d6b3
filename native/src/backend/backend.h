// The narrow interface between the forward pass and a device: a dozen coarse ops, each leaving room for fusion behind
// it. Activations are float, rows contiguous; shapes are in the comments, slowest dimension first.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend/views.h"
#include "base/buffer.h"

namespace fasa {

// The largest shapes that the ops of a context will see; all workspace follows from them.
struct OpsLimits {
    int n_batch;       // rows in one call
    int64_t n_in_max;  // values in an input row of `linear`
    int n_head, n_head_kv, head_dim;
    int n_ctx;
};

// Ops on one device with their workspace, taken once. Used by one thread at a time.
class Ops {
   public:
    virtual ~Ops() = default;

    // x[i] = row token[i] of w. x [n][n_embd]
    virtual void embed(float* x, const WeightView& w, const int32_t* token, int n) = 0;
    // y = x / rms(x) * weight over rows of dim values. y may be x.
    virtual void rms_norm(float* y, const float* x, const float* weight, int64_t n_rows, int dim, float eps) = 0;
    // Products that share the input x [n][n_in]: y = x wᵀ (+ bias) (+ y).
    virtual void linear(const LinearOut* out, int n_products, const float* x, int n) = 0;
    // Rotates q [n][n_head][head_dim] in place and k [n][n_head_kv][head_dim] into the cache with v (same shape); both
    // get their dims in the order of the cache.
    virtual void rope_store(float* q, const float* k, const float* v, int n_head, const RopeView& rope,
                            const KvView& kv, Rows rows) = 0;
    // Causal attention of rotated q over everything cached up to each row's position. y, q [n][n_head][head_dim]
    virtual void attend_dense(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows) = 0;
    // The same for one row over the positions of a selection, whose sets are the KV heads or the query heads.
    virtual void attend_selected(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                                 const Selection& selection) = 0;
    // scores[i][pos] = q[i] · key of pos, for n_q queries spread evenly over the KV heads, the first n_pos positions;
    // scores [n_q][n_ctx], q [n_q][head_dim]. Only the dominant dims count unless whole_key.
    virtual void token_scores(float* scores, const float* q, int n_q, const KvView& kv, int32_t seq, int32_t n_pos,
                              bool whole_key) = 0;
    // The `keep` best positions below n_pos of every row of scores [n_set][n_ctx]: always the first n_sink and the last
    // n_recent, then those with the highest scores, the lower position first among equals. NaN counts as the lowest.
    virtual void topk(const float* scores, int32_t n_pos, int32_t keep, int32_t n_sink, int32_t n_recent,
                      Selection& selection) = 0;
    // mass[set][pos] += the softmax weights that the rows' queries give to pos, summed over rows and the set's heads:
    // rotated q [n][n_head][head_dim] over everything cached up to each row's position. mass [n_set][n_ctx], the sets
    // being the KV heads or the query heads.
    virtual void attention_mass(float* mass, int n_set, const float* q, int n_head, float scale, const KvView& kv,
                                Rows rows) = 0;
    // The same for one row, each set over its positions of a selection.
    virtual void selected_mass(float* mass, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                               const Selection& selection) = 0;
    // High and low bounds of the keys in pages of `page` positions, from first_page to the last one below n_pos. bounds
    // [n_head_kv][pages of n_ctx][2][head_dim], half precision, dims in the order of the cache.
    virtual void page_bounds(uint16_t* bounds, const KvView& kv, int32_t seq, int32_t page, int32_t first_page,
                             int32_t n_pos, PageBounds kind) = 0;
    // similarity[head_kv][pos] = mean cosine between the key at pos and the others below n_pos; [n_head_kv][n_ctx]. A
    // key of zeros is similar to none.
    virtual void key_similarity(float* similarity, const KvView& kv, int32_t seq, int32_t n_pos) = 0;
    // gate = silu(gate) * up, n values
    virtual void glu(float* gate, const float* up, int64_t n) = 0;
};

class Device {
   public:
    virtual ~Device() = default;
    virtual std::string name() const = 0;  // "cpu (avx512, 8 threads)"
    virtual int n_threads() const = 0;
    virtual std::unique_ptr<Ops> make_ops(const OpsLimits& limits) const = 0;
    // Bytes that make_ops takes.
    virtual size_t ops_bytes(const OpsLimits& limits) const = 0;
};

std::unique_ptr<Device> make_cpu_device(int n_threads);

}  // namespace fasa
