// What selection of positions needs to know beyond scores: the weights that queries give, and summaries of keys.
#pragma once

#include "backend/backend.h"
#include "backend/cpu/observe_kernels.h"
#include "base/team.h"

namespace fasa::cpu {

class Observation {
   public:
    Observation(Team& team, const OpsLimits& limits);

    // See the ops of the same names in backend.h.
    void attention_mass(float* mass, int n_set, const float* q, int n_head, float scale, const KvView& kv, Rows rows);
    void selected_mass(float* mass, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                       const Selection& selection);
    void page_bounds(uint16_t* bounds, const KvView& kv, int32_t seq, int32_t page, int32_t first_page, int32_t n_pos,
                     PageBounds kind);
    void key_similarity(float* similarity, const KvView& kv, int32_t seq, int32_t n_pos);

    static size_t scratch_bytes(const OpsLimits& limits, int n_threads);

   private:
    // Of one thread: up to max_queries queries against up to kv_tile keys.
    struct Tile {
        float* qt;      // [head_dim][max_queries]
        float* keys;    // [kv_tile][key_stride]
        float* scores;  // [kv_tile][max_queries]
        float* top;     // [max_queries]
        float* sum;     // [max_queries]
        float* weight;  // [kv_tile]
    };
    // Queries of one set: those of `heads` heads from `head` on, row by row.
    struct Queries {
        const float* q;  // [rows][n_head][head_dim]
        int n_head, head, heads;
        int32_t pos0;
        float scale;

        int32_t n_visible(int i) const { return pos0 + i / heads + 1; }
    };
    struct Scratch {
        float* tiles;     // [n_threads] of tile_values
        float* log_sums;  // [n_set][rows * heads, padded to max_queries], as many as fit a batch
    };

    static Scratch take(Arena& arena, const OpsLimits& limits, int n_threads);
    Tile tile(int thread) const;
    // Queries [first, first + n) of a set, transposed and padded with zeros; returns the padded count.
    int lay_out(const Queries& queries, int first, int n, const Tile& t) const;
    // Scores of n keys for the queries laid out.
    void score(const KvHead& kv, const int32_t* positions, int first, int n, int n_q, const Tile& t) const;
    void mass_of_rows(float* mass, int n_set, const float* q, int n_head, float scale, const KvView& kv, Rows rows);
    // log of the sum of exp(score) over the keys that each query of a tile sees, into out [padded count].
    void log_sums(const Queries& queries, int first, int n, const KvHead& kv, const Tile& t, float* out) const;
    // mass[pos] += the weights of a tile's queries for positions [begin, end).
    void add_weights(float* mass, const Queries& queries, int first, int n, const KvHead& kv, int32_t begin,
                     int32_t end, const float* log_sum, const Tile& t) const;

    const ObserveKernels& kernels_;
    Team& team_;
    OpsLimits limits_;
    Buffer memory_;
    Scratch scratch_;
};

}  // namespace fasa::cpu
