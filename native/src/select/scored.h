// What methods share that score every position by a dot product with some of the key's dims and keep the best.
#pragma once

#include "select/selector.h"

namespace fasa {

class ScoredSelector : public Selector {
   public:
    explicit ScoredSelector(const SelectorSetup& setup)
        : config_(setup.config),
          shape_(setup.shape),
          n_set_(setup.shape.n_set(setup.config)),
          device_(setup.device),
          ops_(setup.ops),
          scratch_(setup.scratch) {}

    int32_t rank(const Step& step, Ranking& ranking) override;
    void select(const Step& step, Selection& out) override;  // whole pages
    bool fills_budget() const override { return config_.page == 1; }
    bool replayable() const override { return config_.page == 1; }
    uint64_t bytes_read(const Step& step) const override;

   protected:
    // The queries that rank a step's positions, over the dims that count.
    virtual SetQueries queries(const Step& step) = 0;
    // Whether the dominant planes of the cache hold all dims that count, so that nothing else is read.
    virtual bool reads_dominant_only(const Step& /*step*/) const { return false; }

    const SelectConfig config_;
    const SelectShape shape_;
    const int32_t n_set_;
    const Device& device_;
    Ops& ops_;
    SelectScratch& scratch_;
};

}  // namespace fasa
