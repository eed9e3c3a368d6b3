// Whether a layer of a decode step is sparse, and over what; counts what was done.
#pragma once

#include "kv/store.h"
#include "select/selector.h"

namespace fasa {

struct SparsityCounts {
    uint64_t layers_dense, layers_sparse;  // layer passes of decode steps
    uint64_t tokens_selected;              // positions, summed over lists and layers
    uint64_t key_bytes, value_bytes;       // of the KV cache that attention and selection read in decode steps
    uint64_t host_rows;                    // rows in host memory that decode steps attended to
};

class Sparsity {
   public:
    // The scratch of the setup must stay where it is.
    explicit Sparsity(const SelectorSetup& setup);

    // To be called for the rows of every layer of every batch, keys stored.
    void observe(int32_t layer, Rows rows, const float* q, float scale, const KvView& kv);
    // Attention of a decode step's one row in this layer over some positions, which are returned; y, q
    // [n_head][head_dim]. Or nullptr when it should see all; y is then untouched.
    const Selection* attend(float* y, int32_t layer, Rows rows, const float* q, float scale, const KvView& kv);
    void forget(int32_t seq, int32_t n_tokens);

    // Whether all steps call the same ops as long as is_sparse is the same. What they do is then to be counted by
    // count_step, as attend may not be called for each; otherwise attend counts.
    bool replayable() const;
    // Whether any layer of a step with so many cached positions is sparse.
    bool is_sparse(int32_t n_pos) const;
    void count_step(Rows rows, const KvStore& kv);

    SparsityCounts counts{};

   private:
    int32_t budget(int32_t layer, int32_t n_pos) const;
    bool is_sparse(int32_t layer, int32_t n_pos) const;
    void attend_sparse(float* y, const Step& step);
    uint64_t n_filled(const Step& step) const;  // positions, when every list takes the whole budget
    uint64_t n_selected() const;                // as counted
    void count_dense(const KvView& kv, int32_t n_pos);
    void count_sparse(const Step& step, uint64_t n_tokens);

    SelectConfig config_;
    SelectShape shape_;
    Ops& ops_;
    Selection& selection_;
    std::unique_ptr<Selector> selector_;  // nullptr: full attention
};

}  // namespace fasa
