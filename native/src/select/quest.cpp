// Quest (arXiv 2406.10774): pages of 16 positions, ranked by the highest score that any key within the bounds of the
// page's keys could have: the sum over dims of max(q * high, q * low). Heads that share positions add their scores.
#include <algorithm>

#include "select/methods.h"
#include "select/pages.h"

namespace fasa {
namespace {

int32_t page_of(const SelectConfig& config) {
    constexpr int32_t default_page = 16;
    return config.page > 1 ? config.page : default_page;
}

// max(q * high, q * low) is q+ * high + q- * low with q+ = max(q, 0) and q- = min(q, 0), so a page is scored like a key
// of twice the dims, and the scores of heads are one product with the sum of their q+ and q-.
class Quest final : public Selector {
   public:
    explicit Quest(const SelectorSetup& setup)
        : config_(setup.config),
          shape_(setup.shape),
          ops_(setup.ops),
          scratch_(setup.scratch),
          page_(page_of(config_)),
          bounds_(setup.device.buffer(quest_bytes(config_, shape_), "page bounds of method quest")),
          n_bounded_(size_t{1} * shape_.n_layer * shape_.n_seq) {}

    void select(const Step& step, Selection& out) override {
        uint16_t* bounds = bounds_of(step.layer, step.seq);
        int32_t& n_bounded = n_bounded_[step.layer * shape_.n_seq + step.seq];
        const int32_t first_page = std::min(n_bounded, step.n_pos - 1) / page_;
        ops_.page_bounds(bounds, step.kv, step.seq, page_, first_page, step.n_pos, config_.quest_bounds);
        n_bounded = step.n_pos;
        out.n_set = shape_.n_set(config_);
        ops_.bound_queries(scratch_.q, out.n_set, step.q, shape_.n_head, step.kv.head_dim);
        for (int32_t set = 0; set < out.n_set; ++set) score_pages(step, bounds, out.n_set, set);
        choose_pages(scratch_.scores, page_, config_, step, ops_, out);
        const uint64_t n_values = uint64_t{2} * n_pages(step.n_pos, page_) + step.n_pos - first_page * page_;
        bytes_read_ = sizeof(uint16_t) * n_values * shape_.n_head_kv * shape_.layout.head_dim;
    }

    uint64_t bytes_read(const Step&) const override { return bytes_read_; }

    void forget(int32_t seq, int32_t n_tokens) override {
        for (int32_t layer = 0; layer < shape_.n_layer; ++layer) {
            int32_t& n_bounded = n_bounded_[layer * shape_.n_seq + seq];
            n_bounded = std::min(n_bounded, n_tokens);
        }
    }

   private:
    int64_t head_values() const { return int64_t{n_pages(shape_.n_ctx, page_)} * 2 * shape_.layout.head_dim; }
    size_t layer_values() const { return static_cast<size_t>(shape_.n_head_kv * head_values()); }
    uint16_t* bounds_of(int32_t layer, int32_t seq) const {
        return static_cast<uint16_t*>(bounds_.data()) + (size_t{1} * layer * shape_.n_seq + seq) * layer_values();
    }

    void score_pages(const Step& step, uint16_t* bounds, int32_t n_set, int32_t set) {
        KvView pages;  // one head, whose keys are the pages' bounds
        pages.dom = bounds + set * shape_.n_head_kv / n_set * head_values();
        pages.n_ctx = n_pages(shape_.n_ctx, page_);
        pages.n_head_kv = 1;
        pages.head_dim = pages.n_dom = 2 * step.kv.head_dim;
        const float* q = scratch_.q + int64_t{set} * pages.head_dim;
        ops_.token_scores(scratch_.scores + int64_t{set} * shape_.n_ctx, {q, nullptr, 1, 1}, pages, 0,
                          n_pages(step.n_pos, page_), false, nullptr);
    }

    const SelectConfig config_;
    const SelectShape shape_;
    Ops& ops_;
    SelectScratch& scratch_;
    const int32_t page_;
    Buffer bounds_;                   // [n_layer][n_seq][n_head_kv][pages of n_ctx][2][head_dim], half precision
    std::vector<int32_t> n_bounded_;  // [n_layer][n_seq]: positions that the bounds cover
    uint64_t bytes_read_ = 0;
};

}  // namespace

size_t quest_bytes(const SelectConfig& config, const SelectShape& shape) {
    const size_t n_bounds = size_t{2} * n_pages(shape.n_ctx, page_of(config));
    return sizeof(uint16_t) * shape.n_layer * shape.n_seq * shape.n_head_kv * n_bounds * shape.layout.head_dim;
}

std::unique_ptr<Selector> make_quest(const SelectorSetup& setup) { return std::make_unique<Quest>(setup); }

}  // namespace fasa
