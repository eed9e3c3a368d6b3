#include "select/sparsity.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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
    s.q = arena.take<float>(2 * n_head * shape.layout.head_dim);
    s.selection.positions = arena.take<int32_t>(n_head * n_ctx);
    s.selection.count = arena.take<int32_t>(n_head);
    s.selection.capacity = shape.n_ctx;
    return s;
}

Sparsity::Sparsity(const SelectorSetup& setup)
    : config_(setup.config),
      shape_(setup.shape),
      ops_(setup.ops),
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

bool Sparsity::is_sparse(int32_t layer, int32_t n_pos) const {
    return selector_ && layer >= config_.dense_layers && n_pos > std::max(budget(layer, n_pos), config_.dense_below);
}

bool Sparsity::is_sparse(int32_t n_pos) const {
    for (int32_t layer = 0; layer < shape_.n_layer; ++layer) {
        if (is_sparse(layer, n_pos)) return true;
    }
    return false;
}

bool Sparsity::replayable() const {
    const bool same_budgets = config_.n_fac_fraction == 0 && config_.schedule == BudgetSchedule::uniform;
    return !selector_ || (selector_->replayable() && same_budgets);
}

void Sparsity::attend_sparse(float* y, const Step& step) {
    Ranking ranking;
    if (const int32_t n_set = selector_->rank(step, ranking)) {
        selection_.n_set = n_set;
        selection_.capacity = ranking.budget.keep;
        ops_.attend_best(y, step.q, shape_.n_head, step.scale, step.kv, step.seq, step.n_pos, ranking, selection_);
    } else {
        selector_->select(step, selection_);
        ops_.attend_selected(y, step.q, shape_.n_head, step.scale, step.kv, step.seq, selection_);
    }
}

const Selection* Sparsity::attend(float* y, int32_t layer, Rows rows, const float* q, float scale, const KvView& kv) {
    const int32_t n_pos = rows.pos0 + 1;
    const Step step{layer, rows.seq, n_pos, budget(layer, n_pos), q, scale, kv};
    const bool sparse = is_sparse(layer, n_pos);
    if (sparse) attend_sparse(y, step);
    if (!replayable()) {
        if (sparse) {
            count_sparse(step, selector_->fills_budget() ? n_filled(step) : n_selected());
        } else {
            count_dense(kv, n_pos);
        }
    }
    return sparse ? &selection_ : nullptr;
}

void Sparsity::count_step(Rows rows, const KvStore& kv) {
    const int32_t n_pos = rows.pos0 + 1;
    for (int32_t layer = 0; layer < shape_.n_layer; ++layer) {
        const Step step{layer, rows.seq, n_pos, budget(layer, n_pos), nullptr, 0, kv.layer(layer)};
        if (is_sparse(layer, n_pos)) {
            count_sparse(step, n_filled(step));
        } else {
            count_dense(step.kv, n_pos);
        }
    }
}

void Sparsity::forget(int32_t seq, int32_t n_tokens) {
    if (selector_) selector_->forget(seq, n_tokens);
}

void Sparsity::count_dense(const KvView& kv, int32_t n_pos) {
    const uint64_t n_values = static_cast<uint64_t>(kv.n_head_kv) * n_pos * kv.head_dim;
    counts.layers_dense += 1;
    counts.key_bytes += sizeof(uint16_t) * n_values;
    counts.value_bytes += sizeof(uint16_t) * n_values;
    if (kv.host_layer >= 0) counts.host_rows += static_cast<uint64_t>(kv.n_head_kv) * static_cast<uint64_t>(n_pos);
}

uint64_t Sparsity::n_filled(const Step& step) const { return uint64_t{1} * shape_.n_set(config_) * step.budget; }

uint64_t Sparsity::n_selected() const {
    const int32_t* count = ops_.on_host(selection_.count, selection_.n_set);
    return std::accumulate(count, count + selection_.n_set, uint64_t{0});
}

// Lists of query heads that share a KV head are read one by one.
void Sparsity::count_sparse(const Step& step, uint64_t n_tokens) {
    counts.layers_sparse += 1;
    counts.tokens_selected += n_tokens;
    counts.key_bytes += selector_->bytes_read(step) + sizeof(uint16_t) * n_tokens * step.kv.head_dim;
    counts.value_bytes += sizeof(uint16_t) * n_tokens * step.kv.head_dim;
    if (step.kv.host_layer >= 0) counts.host_rows += n_tokens;
}

}  // namespace fasa
