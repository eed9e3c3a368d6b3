// Which cached positions a decode step attends to. Every method is one small file behind this interface; the attention
// over the chosen positions is the same for all of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "select/table.h"

namespace fasa {

enum class BudgetSchedule {
    uniform,
    pyramid  // PyramidKV: falls linearly from the first sparse layer to the last, same mean
};

// Everything that a method may be told, all values resolved.
struct SelectConfig {
    std::string method = "full";
    int32_t n_tip = 0;         // dominant chunks (fasa), or half as many query dims as count (sparq)
    int32_t n_fac = 256;       // positions attended to, forced ones included
    float n_fac_fraction = 0;  // > 0: that share of the cached positions instead
    int32_t n_sink = 4, n_recent = 32;
    int32_t dense_layers = 1;      // leading layers that stay dense
    int32_t dense_below = 0;       // cached positions up to which a step stays dense, besides n_fac
    int32_t page = 1;              // positions chosen together
    bool chunks_per_head = false;  // dominant chunks per query head instead of per KV head
    bool tokens_per_head = false;  // position lists per query head instead of per KV head
    Criterion criterion = Criterion::mass;
    BudgetSchedule schedule = BudgetSchedule::uniform;
    PageBounds quest_bounds = PageBounds::min_max;
    int32_t observe_window = 32;     // snapkv, rkv: last queries that vote
    int32_t refresh_every = 64;      // snapkv, rkv: generated tokens between two votes
    float redundancy_weight = 0.9f;  // rkv: 1 - lambda
};

// Throws ARGUMENT naming a value that is out of range.
void check_select_config(const SelectConfig& config, const ChunkLayout& layout);

struct SelectShape {
    int32_t n_layer, n_head, n_head_kv, n_ctx, n_seq;
    ChunkLayout layout;

    int32_t group() const { return n_head / n_head_kv; }
    int32_t n_set(const SelectConfig& c) const { return c.tokens_per_head ? n_head : n_head_kv; }
};

// One layer of one decode step: its keys are stored, its attention comes next.
struct Step {
    int32_t layer, seq;
    int32_t n_pos;   // cached positions, the current one included
    int32_t budget;  // positions to choose, < n_pos
    const float* q;  // [n_head][head_dim], rotated, dims in the order of the cache
    float scale;     // of scores before a softmax
    KvView kv;
};

// Memory of the device that a selector may use during a call, taken once for all layers.
struct SelectScratch {
    float* scores;        // [n_head][n_ctx]
    float* q;             // [n_head][2][head_dim]
    Selection selection;  // room for n_head lists of n_ctx

    static SelectScratch take(Arena& arena, const SelectShape& shape);
};

class Selector {
   public:
    virtual ~Selector() = default;
    // How many lists a selection has whose positions are simply the best of a ranking, and that ranking; 0: call
    // select.
    virtual int32_t rank(const Step& /*step*/, Ranking& /*ranking*/) { return 0; }
    // Writes the positions that this step attends to into out: out.n_set lists of at least one position, ascending, in
    // rows of out.capacity, which should be the length of the longest: attention takes it for that.
    virtual void select(const Step& step, Selection& out) = 0;
    // Whether rank or select always chooses step.budget positions a list.
    virtual bool fills_budget() const { return false; }
    // Whether, besides, it does the same at every step, positions apart, without a look at the data from the host.
    virtual bool replayable() const { return false; }
    // Bytes of the KV cache that this step's select reads itself.
    virtual uint64_t bytes_read(const Step& /*step*/) const { return 0; }
    // Rows of a layer whose keys were just stored, in prefill and decode alike, dense layers included; in decode before
    // select. q [rows.n][n_head][head_dim], rotated, in the order of the cache.
    virtual void observe(int32_t /*layer*/, Rows /*rows*/, const float* /*q*/, float /*scale*/, const KvView& /*kv*/) {}
    // What was observed of the sequence past its first n_tokens holds no longer: those tokens are gone or others.
    virtual void forget(int32_t /*seq*/, int32_t /*n_tokens*/) {}
};

struct SelectorSetup {
    const SelectConfig& config;
    const SelectShape& shape;
    const Table* table;                 // nullptr: the model has none
    const std::vector<int16_t>& order;  // of the KV store: [n_layer][n_head_kv][head_dim]; empty: unchanged
    const Device& device;
    Ops& ops;
    SelectScratch& scratch;
};

// Throws ARGUMENT for an unknown method (listing all) or values it cannot work with.
std::unique_ptr<Selector> make_selector(const SelectorSetup& setup);

// Bytes of device memory that make_selector takes.
size_t selector_bytes(const SelectConfig& config, const SelectShape& shape);

// "full, fasa, ..."
const char* selector_names();

}  // namespace fasa
