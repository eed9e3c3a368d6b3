#include "select/sparsity.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace fasa {
namespace {

constexpr int32_t pyramid_ratio = 20;  // PyramidKV's beta: the mean budget over the last layer's

void check(bool ok, const char* name, double value, const char* expected) {
    if (!ok) fail(FASA_ERROR_ARGUMENT, "%s is %g, expected %s", name, value, expected);
}

}  // namespace

void check_select_config(const SelectConfig& c, const ChunkLayout& layout) {
    const int32_t most_chunks = layout.head_dim / 2;
    check(c.n_tip >= 1 && c.n_tip <= most_chunks, "n_tip", c.n_tip, "1 up to half of the head's dims");
    check(c.n_fac >= 1, "n_fac", c.n_fac, "1 or more");
    check(c.n_fac_fraction >= 0 && c.n_fac_fraction <= 1, "n_fac_fraction", static_cast<double>(c.n_fac_fraction),
          "0 to 1");
    check(c.n_sink >= 0, "n_sink", c.n_sink, "0 or more");
    check(c.n_recent >= 0, "n_recent", c.n_recent, "0 or more");
    check(c.dense_layers >= 0, "dense_layers", c.dense_layers, "0 or more");
    check(c.dense_below >= 0, "dense_below", c.dense_below, "0 or more");
    check(c.page >= 1 && c.page <= 4096, "page", c.page, "1 to 4096");
    check(c.observe_window >= 1 && c.observe_window <= 4096, "observe_window", c.observe_window, "1 to 4096");
    check(c.refresh_every >= 1, "refresh_every", c.refresh_every, "1 or more");
    check(c.redundancy_weight >= 0 && c.redundancy_weight <= 1, "redundancy_weight",
          static_cast<double>(c.redundancy_weight), "0 to 1");
}

SelectScratch SelectScratch::take(Arena& arena, const SelectShape& shape) {
    const size_t n_head = static_cast<size_t>(shape.n_head), n_ctx = static_cast<size_t>(shape.n_ctx);
    SelectScratch s;
    s.scores = arena.take<float>(n_head * n_ctx);
    s.q = arena.take<float>(n_head * shape.layout.head_dim);
    s.selection.positions = arena.take<int32_t>(n_head * n_ctx);
    s.selection.count = arena.take<int32_t>(n_head);
    s.selection.capacity = shape.n_ctx;
    return s;
}

Sparsity::Sparsity(const SelectorSetup& setup)
    : config_(setup.config),
      shape_(setup.shape),
      selection_(setup.scratch.selection),
      selector_(make_selector(setup)) {}

int32_t Sparsity::budget(int32_t layer, int32_t n_pos) const {
    int32_t budget = config_.n_fac;
    if (config_.n_fac_fraction > 0)
        budget = static_cast<int32_t>(std::ceil(config_.n_fac_fraction * static_cast<float>(n_pos)));
    if (config_.schedule == BudgetSchedule::uniform) return std::min(budget, n_pos);
    const int32_t forced = std::min(budget, config_.n_sink + config_.n_recent), mean = budget - forced;
    const int32_t n_sparse = shape_.n_layer - config_.dense_layers, i = layer - config_.dense_layers;
    // Above the mean in one layer as far as below it in the layer opposite, so that the total stays the same.
    const int64_t most_above = mean - mean / pyramid_ratio;
    const int32_t above = n_sparse > 1 ? static_cast<int32_t>(most_above * (n_sparse - 1 - 2 * i) / (n_sparse - 1)) : 0;
    return std::min(std::max(1, budget + above), n_pos);
}

void Sparsity::observe(int32_t layer, Rows rows, const float* q, float scale, const KvView& kv) {
    if (selector_) selector_->observe(layer, rows, q, scale, kv);
}

const Selection* Sparsity::select(int32_t layer, Rows rows, const float* q, float scale, const KvView& kv) {
    const int32_t n_pos = rows.pos0 + 1, n_chosen = budget(layer, n_pos);
    if (!selector_ || layer < config_.dense_layers || n_pos <= std::max(n_chosen, config_.dense_below)) {
        count_dense(kv, n_pos);
        return nullptr;
    }
    const Step step{layer, rows.seq, n_pos, n_chosen, q, scale, kv};
    selector_->select(step, selection_);
    counts.key_bytes += selector_->bytes_read(step);
    count_sparse(kv);
    return &selection_;
}

void Sparsity::forget(int32_t seq, int32_t n_tokens) {
    if (selector_) selector_->forget(seq, n_tokens);
}

void Sparsity::count_dense(const KvView& kv, int32_t n_pos) {
    const uint64_t n_values = static_cast<uint64_t>(kv.n_head_kv) * n_pos * kv.head_dim;
    counts.layers_dense += 1;
    counts.key_bytes += sizeof(uint16_t) * n_values;
    counts.value_bytes += sizeof(uint16_t) * n_values;
}

// Lists of query heads that share a KV head are read one by one.
void Sparsity::count_sparse(const KvView& kv) {
    uint64_t n_tokens = 0;
    for (int32_t set = 0; set < selection_.n_set; ++set) n_tokens += static_cast<uint64_t>(selection_.count[set]);
    counts.layers_sparse += 1;
    counts.tokens_selected += n_tokens;
    counts.key_bytes += sizeof(uint16_t) * n_tokens * kv.head_dim;
    counts.value_bytes += sizeof(uint16_t) * n_tokens * kv.head_dim;
}

}  // namespace fasa
