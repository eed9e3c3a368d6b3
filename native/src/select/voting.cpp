#include "select/voting.h"

#include <algorithm>

#include "base/error.h"

namespace fasa {
namespace {

constexpr int32_t reach = 3;  // of max-pooling to either side: a kernel of 7, as SnapKV has it

void pool(const float* votes, int32_t n, float* pooled) {
    for (int32_t i = 0; i < n; ++i) {
        pooled[i] = *std::max_element(votes + std::max(0, i - reach), votes + std::min(n, i + reach + 1));
    }
}

}  // namespace

VotingSelector::VotingSelector(const SelectorSetup& setup)
    : config_(setup.config),
      shape_(setup.shape),
      n_set_(shape_.n_set(config_)),
      device_(setup.device),
      ops_(setup.ops),
      votes_(setup.scratch.scores),
      states_(size_t{1} * shape_.n_layer * shape_.n_seq),
      queries_(device_.buffer(states_.size() * window_bytes(config_, shape_), "observed queries")),
      voters_(device_.buffer(window_bytes(config_, shape_), "voting queries")),
      host_votes_(size_t{1} * n_set_ * shape_.n_ctx) {}

void VotingSelector::State::cut(int32_t n_tokens) {
    end = std::min(end, n_tokens);
    first = std::min(first, end);
    if (voted_at > n_tokens) voted_at = 0;
}

void VotingSelector::forget(int32_t seq, int32_t n_tokens) {
    for (int32_t layer = 0; layer < shape_.n_layer; ++layer) state(layer, seq).cut(n_tokens);
}

template <class F>
void VotingSelector::for_queries(int32_t layer, int32_t seq, int32_t first, int32_t end, F&& f) const {
    const int32_t window = config_.observe_window;
    float* all = static_cast<float*>(queries_.data()) + (int64_t{layer} * shape_.n_seq + seq) * window * query_values();
    for (int32_t pos = first; pos < end;) {
        const int32_t at = pos % window, n = std::min(end - pos, window - at);
        f(all + at * query_values(), pos - first, n);
        pos += n;
    }
}

void VotingSelector::observe(int32_t layer, Rows rows, const float* q, float, const KvView&) {
    if (layer < config_.dense_layers) return;
    State& s = state(layer, rows.seq);
    s.cut(rows.pos0);
    if (s.end < rows.pos0) s.first = rows.pos0;  // what came before went by unobserved
    s.end = rows.pos0 + rows.n;
    s.first = std::max(s.first, s.end - config_.observe_window);
    const int32_t first = std::max(s.first, rows.pos0);
    q += (first - rows.pos0) * query_values();
    for_queries(layer, rows.seq, first, s.end, [&](float* query, int32_t i, int32_t n) {
        ops_.copy(query, q + i * query_values(), n * query_values());
    });
}

void VotingSelector::select(const Step& step, Selection& out) {
    State& s = state(step.layer, step.seq);
    bytes_read_ = 0;
    out.n_set = n_set_;
    if (s.voted_at == 0 || step.n_pos - s.voted_at >= config_.refresh_every) return vote(step, s, out);
    const int32_t n_kept = static_cast<int32_t>(s.kept.size()) / n_set_;
    out.capacity = n_kept + step.n_pos - s.voted_at;
    host_list_.clear();
    for (int32_t set = 0; set < n_set_; ++set) {
        const auto kept = s.kept.begin() + int64_t{set} * n_kept;
        host_list_.insert(host_list_.end(), kept, kept + n_kept);
        for (int32_t pos = s.voted_at; pos < step.n_pos; ++pos) host_list_.push_back(pos);
    }
    const std::vector<int32_t> count(static_cast<size_t>(n_set_), out.capacity);
    ops_.wait();  // the layer before may still read its lists
    device_.copy(out.positions, host_list_.data(), sizeof(int32_t) * host_list_.size());
    device_.copy(out.count, count.data(), sizeof(int32_t) * count.size());
}

void VotingSelector::gather_queries(const Step& step, const State& s, int32_t n_voters) {
    const int32_t first = step.n_pos - n_voters;
    if (s.end != step.n_pos || s.first > first) {
        fail(FASA_ERROR_ARGUMENT,
             "method %s needs the queries of the last %d positions, but saw none before position %d: set the method "
             "first, then truncate the sequence to %d tokens or fewer and process the others again",
             config_.method.c_str(), n_voters, s.first, std::max(0, step.n_pos - n_voters));
    }
    float* voters = static_cast<float*>(voters_.data());
    for_queries(step.layer, step.seq, first, step.n_pos, [&](const float* query, int32_t i, int32_t n) {
        ops_.copy(voters + i * query_values(), query, n * query_values());
    });
}

void VotingSelector::pool_votes(int32_t n) {
    for (int64_t row = 0; row < n_set_ * int64_t{shape_.n_ctx}; row += shape_.n_ctx) {
        pool(ops_.on_host(votes_ + row, n), n, host_votes_.data() + row);
    }
}

void VotingSelector::keep(const Selection& out, State& s) const {
    s.kept.clear();
    for (int32_t set = 0; set < n_set_; ++set) {
        const int32_t* list = ops_.on_host(out.list(set), out.capacity);
        s.kept.insert(s.kept.end(), list, list + out.capacity);
    }
}

void VotingSelector::vote(const Step& step, State& s, Selection& out) {
    const int32_t n_voters = std::min(config_.observe_window, step.n_pos), first = step.n_pos - n_voters;
    gather_queries(step, s, n_voters);
    ops_.clear_scores(votes_, n_set_, 0, step.n_pos);
    const Rows rows{step.seq, first, n_voters};
    ops_.attention_mass(votes_, n_set_, static_cast<const float*>(voters_.data()), shape_.n_head, step.scale, step.kv,
                        rows);
    pool_votes(first);
    bytes_read_ += 2 * sizeof(uint16_t) * static_cast<uint64_t>(step.kv.n_head_kv) * step.n_pos * step.kv.head_dim;
    appraise(step, host_votes_.data(), n_voters);
    for (int64_t row = 0; row < n_set_ * int64_t{shape_.n_ctx}; row += shape_.n_ctx) {
        device_.copy(votes_ + row, host_votes_.data() + row, sizeof(float) * static_cast<size_t>(first));
    }
    out.capacity = step.budget;
    ops_.topk(votes_, step.n_pos, {step.budget, config_.n_sink, n_voters}, out);
    keep(out, s);
    s.voted_at = step.n_pos;
}

}  // namespace fasa
