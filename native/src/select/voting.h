// What methods share that let the last queries vote now and then on which positions to keep, and attend to everything
// newer in between.
#pragma once

#include "select/selector.h"

namespace fasa {

// SnapKV's rule; methods that change what a position is worth override `appraise`.
//
// A vote is held at the first sparse step and then once `refresh_every` positions have come. The voters are the queries
// of the last `observe_window` positions, the current one included. A position's votes are the softmax weights that
// they give it, summed over voters and over the heads of its list, and then the largest such sum among the 7 positions
// around it. The positions of the voters are kept, and those before them with the most votes, to fill the budget. Lists
// grow by one at every step until the next vote.
class VotingSelector : public Selector {
   public:
    explicit VotingSelector(const SelectorSetup& setup);

    void observe(int32_t layer, Rows rows, const float* q, float scale, const KvView& kv) override;
    void select(const Step& step, Selection& out) override;
    uint64_t bytes_read(const Step&) const override { return bytes_read_; }
    void forget(int32_t seq, int32_t n_tokens) override;

    // A window of queries, of which there is one for every layer and sequence, and the one that votes.
    static size_t window_bytes(const SelectConfig& c, const SelectShape& s) {
        return sizeof(float) * c.observe_window * s.n_head * s.layout.head_dim;
    }

   protected:
    // Turns the votes [n_set][n_ctx] of the positions before the voters, on the host, into what they are ranked by.
    virtual void appraise(const Step& /*step*/, float* /*votes*/, int32_t /*n_voters*/) {}

    const SelectConfig config_;
    const SelectShape shape_;
    const int32_t n_set_;
    const Device& device_;
    Ops& ops_;
    uint64_t bytes_read_ = 0;

   private:
    // Of one layer and sequence.
    struct State {
        int32_t first = 0, end = 0;  // positions whose queries are remembered, the last observe_window ones at most
        int32_t voted_at = 0;        // cached positions at the last vote; 0: none was held
        std::vector<int32_t> kept;   // [n_set][n_kept], chosen then

        void cut(int32_t n_tokens);
    };

    State& state(int32_t layer, int32_t seq) { return states_[layer * shape_.n_seq + seq]; }
    int64_t query_values() const { return int64_t{shape_.n_head} * shape_.layout.head_dim; }
    // f(query, i, n) for the parts of positions first .. end whose remembered queries are contiguous: those of the n
    // positions from first + i on.
    template <class F>
    void for_queries(int32_t layer, int32_t seq, int32_t first, int32_t end, F&& f) const;
    void vote(const Step& step, State& s, Selection& out);
    void gather_queries(const Step& step, const State& s, int32_t n_voters);
    // Max-pools the votes for the first n positions.
    void pool_votes(int32_t n);
    void keep(const Selection& out, State& s) const;

    float* votes_;
    std::vector<State> states_;       // [n_layer][n_seq]
    Buffer queries_;                  // [n_layer][n_seq][observe_window][n_head][head_dim], a position at its remainder
    Buffer voters_;                   // [observe_window][n_head][head_dim], in order
    std::vector<float> host_votes_;   // [n_set][n_ctx]
    std::vector<int32_t> host_list_;  // [n_set][as many as chosen]
};

}  // namespace fasa
