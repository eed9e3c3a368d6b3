// What methods share that score every position by a dot product with some of the key's dims and keep the best.
#pragma once

#include "select/selector.h"

namespace fasa {

class ScoredSelector : public Selector {
   public:
    explicit ScoredSelector(const SelectorSetup& setup)
        : config_(setup.config), shape_(setup.shape), ops_(setup.ops), scratch_(setup.scratch) {}

    void select(const Step& step, Selection& out) override;
    uint64_t bytes_read(const Step& step) const override;

   protected:
    // Zeroes the dims of one query head that do not count. q [head_dim], in the order of the cache.
    virtual void mask(const Step& step, int32_t head, float* q) = 0;
    // Whether the dominant planes of the cache hold all dims that count, so that nothing else is read.
    virtual bool reads_dominant_only(const Step& /*step*/) const { return false; }

    int32_t n_set() const { return config_.tokens_per_head ? shape_.n_head : shape_.n_head_kv; }

    const SelectConfig config_;
    const SelectShape shape_;
    Ops& ops_;
    SelectScratch& scratch_;
};

// Replaces scores [n_set][n_ctx] of positions by the mean over their page, chooses whole pages by it until the budget
// is full, and writes their positions. The page of the current position is always chosen.
void choose_pages(float* scores, int32_t n_ctx, const SelectConfig& config, const Step& step, Ops& ops, Selection& out);

}  // namespace fasa
