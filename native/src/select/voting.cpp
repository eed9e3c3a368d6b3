#include "select/voting.h"

#include <algorithm>

#include "base/error.h"

namespace fasa {
namespace {

constexpr int32_t reach = 3;  // of max-pooling to either side: a kernel of 7, as SnapKV has it

void pool(float* votes, int32_t n, float* pooled) {
    for (int32_t i = 0; i < n; ++i) {
        pooled[i] = *std::max_element(votes + std::max(0, i - reach), votes + std::min(n, i + reach + 1));
    }
    std::copy_n(pooled, n, votes);
}

}  // namespace

VotingSelector::VotingSelector(const SelectorSetup& setup)
    : config_(setup.config),
      shape_(setup.shape),
      n_set_(shape_.n_set(config_)),
      ops_(setup.ops),
      votes_(setup.scratch.scores),
      states_(size_t{1} * shape_.n_layer * shape_.n_seq),
      queries_(sizeof(float) * states_.size() * config_.observe_window * query_values(), "observed queries"),
      voters_(static_cast<size_t>(config_.observe_window * query_values())),
      largest_(static_cast<size_t>(shape_.n_ctx)) {}

void VotingSelector::State::cut(int32_t n_tokens) {
    end = std::min(end, n_tokens);
    first = std::min(first, end);
    if (voted_at > n_tokens) voted_at = 0;
}

void VotingSelector::forget(int32_t seq, int32_t n_tokens) {
    for (int32_t layer = 0; layer < shape_.n_layer; ++layer) state(layer, seq).cut(n_tokens);
}

float* VotingSelector::query(int32_t layer, int32_t seq, int32_t pos) const {
    const int64_t window = (int64_t{layer} * shape_.n_seq + seq) * config_.observe_window;
    return static_cast<float*>(queries_.data()) + (window + pos % config_.observe_window) * query_values();
}

void VotingSelector::observe(int32_t layer, Rows rows, const float* q, float, const KvView&) {
    if (layer < config_.dense_layers) return;
    State& s = state(layer, rows.seq);
    s.cut(rows.pos0);
    if (s.end < rows.pos0) s.first = rows.pos0;  // what came before went by unobserved
    s.end = rows.pos0 + rows.n;
    s.first = std::max(s.first, s.end - config_.observe_window);
    for (int32_t pos = std::max(s.first, rows.pos0); pos < s.end; ++pos) {
        std::copy_n(q + (pos - rows.pos0) * query_values(), query_values(), query(layer, rows.seq, pos));
    }
}

void VotingSelector::select(const Step& step, Selection& out) {
    State& s = state(step.layer, step.seq);
    bytes_read_ = 0;
    out.n_set = n_set_;
    if (s.voted_at == 0 || step.n_pos - s.voted_at >= config_.refresh_every) return vote(step, s, out);
    const int32_t n_kept = static_cast<int32_t>(s.kept.size()) / n_set_;
    for (int32_t set = 0; set < n_set_; ++set) {
        int32_t* at = std::copy_n(s.kept.data() + int64_t{set} * n_kept, n_kept, out.list(set));
        for (int32_t pos = s.voted_at; pos < step.n_pos; ++pos) *at++ = pos;
        out.count[set] = n_kept + step.n_pos - s.voted_at;
    }
}

void VotingSelector::gather_queries(const Step& step, const State& s, int32_t n_voters) {
    const int32_t first = step.n_pos - n_voters;
    if (s.end != step.n_pos || s.first > first) {
        fail(FASA_ERROR_ARGUMENT,
             "method %s needs the queries of the last %d positions, but saw none before position %d: set the method "
             "first, then truncate the sequence to %d tokens or fewer and process the others again",
             config_.method.c_str(), n_voters, s.first, std::max(0, step.n_pos - n_voters));
    }
    for (int32_t i = 0; i < n_voters; ++i) {
        std::copy_n(query(step.layer, step.seq, first + i), query_values(), voters_.data() + i * query_values());
    }
}

void VotingSelector::vote(const Step& step, State& s, Selection& out) {
    const int32_t n_voters = std::min(config_.observe_window, step.n_pos), first = step.n_pos - n_voters;
    gather_queries(step, s, n_voters);
    for (int32_t set = 0; set < n_set_; ++set) std::fill_n(votes_ + int64_t{set} * shape_.n_ctx, step.n_pos, 0.0f);
    const Rows rows{step.seq, first, n_voters};
    ops_.attention_mass(votes_, n_set_, voters_.data(), shape_.n_head, step.scale, step.kv, rows);
    for (int32_t set = 0; set < n_set_; ++set) pool(votes_ + int64_t{set} * shape_.n_ctx, first, largest_.data());
    bytes_read_ += 2 * sizeof(uint16_t) * static_cast<uint64_t>(step.kv.n_head_kv) * step.n_pos * step.kv.head_dim;
    appraise(step, votes_, n_voters);
    ops_.topk(votes_, step.n_pos, {step.budget, config_.n_sink, n_voters}, out);
    s.voted_at = step.n_pos;
    s.kept.clear();
    for (int32_t set = 0; set < n_set_; ++set) {
        s.kept.insert(s.kept.end(), out.list(set), out.list(set) + out.count[set]);
    }
}

}  // namespace fasa
