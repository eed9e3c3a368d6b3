#include "runtime/config.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/log.h"
#include "runtime/plan.h"

namespace fasa {
namespace {

// Room to shorten a batch so that the last one is not left with fewer than n_rows_alike.
constexpr int32_t min_n_batch = 2 * n_rows_alike;
constexpr int32_t default_n_batch = 512, max_n_batch = 16384, max_n_seq = 1024;

void check_range(const char* name, int32_t value, int32_t max) {
    if (value < 0 || value > max) {
        fail(FASA_ERROR_ARGUMENT, "%s is %d, expected 0 (the default) to %d", name, value, max);
    }
}

int32_t share_of_chunks(float fraction, int32_t n_chunk) {
    if (!(fraction > 0 && fraction <= 1)) {
        fail(FASA_ERROR_ARGUMENT, "n_tip_fraction is %g, expected more than 0, up to 1", static_cast<double>(fraction));
    }
    return std::max(1, static_cast<int32_t>(std::lround(fraction * static_cast<float>(n_chunk))));
}

// The default is the table's own, unless it lacks the joint sets of query heads.
Criterion resolve_criterion(fasa_criterion asked, const Table* table, bool per_head) {
    if (asked == FASA_CRITERION_CA) return Criterion::ca;
    if (asked == FASA_CRITERION_MASS) return Criterion::mass;
    if (!table || (per_head && table->order_head.empty())) return Criterion::ca;
    return table->criterion;
}

DomType dom_type(fasa_k_dom k_dom) {
    switch (k_dom) {
        case FASA_K_DOM_F16:
            return DomType::f16;
        case FASA_K_DOM_INT8:
            return DomType::int8;
        case FASA_K_DOM_Q4:
            return DomType::q4;
    }
    fail(FASA_ERROR_ARGUMENT, "k_dom is %d, expected 0 (f16), 1 (int8) or 2 (q4)", static_cast<int>(k_dom));
}

void check_cache_rows(int32_t n) {
    if (n < -1 || n > max_n_ctx) {
        fail(FASA_ERROR_ARGUMENT, "kv_cache_rows is %d, expected 0 (the default), -1 (none), or up to %d", n,
             max_n_ctx);
    }
}

ContextConfig with_host_rest(const Model& model, const fasa_context_params& p, ContextConfig c) {
    c.host_rest = true;
    if (model.device->has_own_memory() && p.kv_cache_rows >= 0) {
        const int32_t n = p.kv_cache_rows > 0 ? p.kv_cache_rows : std::min(c.select.n_fac, max_n_ctx / 4) * 4;
        c.n_cache_row = c.n_ctx > 0 ? std::min(n, c.n_ctx) : n;
    }
    return c;
}

// Where only the split cache fits, or where neither does but the split one could hold more positions: its workspace is
// larger, so that with little memory it holds fewer. Says so when it chooses.
bool prefers_split(const Model& model, ContextConfig whole, ContextConfig split) {
    if (!model.device->has_own_memory()) return false;
    const int32_t n_ctx = whole.n_ctx > 0 ? whole.n_ctx : model.h.n_ctx_train;
    whole.n_ctx = split.n_ctx = n_ctx;
    const fasa_plan plan_of_whole = make_plan(model, whole), plan = make_plan(model, split);
    if (plan_of_whole.fits || (!plan.fits && plan.n_ctx_max <= plan_of_whole.n_ctx_max)) return false;
    if (model.plan_only) return true;
    log_message(FASA_LOG_INFO,
                "KV cache of %d tokens: only dominant keys are kept on the device, the rest in host memory, %.1f MiB",
                n_ctx, static_cast<double>(plan.kv_host_bytes) / 0x1p20);
    return true;
}

void check_n_ctx(const Model& model, const ContextConfig& c) {
    const int32_t most = n_ctx_limit(model, c);
    if (c.n_ctx <= most) return;
    fail(
        FASA_ERROR_UNSUPPORTED,
        "n_ctx is %d, but a KV head's rows in host memory must be less than 2 GiB: %d tokens at most, or kv=\"device\"",
        c.n_ctx, most);
}

}  // namespace

fasa_method_params default_method() {
    fasa_method_params p = {};
    const SelectConfig c;
    p.method = "auto";
    p.n_fac = c.n_fac;
    p.n_sink = c.n_sink;
    p.n_recent = c.n_recent;
    p.dense_layers = c.dense_layers;
    p.dense_below = -1;
    p.page = c.page;
    p.observe_window = c.observe_window;
    p.refresh_every = c.refresh_every;
    p.redundancy_weight = c.redundancy_weight;
    return p;
}

SelectConfig resolve_method(const Model& model, const fasa_method_params& p, const Table* table) {
    const std::string asked = p.method ? p.method : "auto";
    SelectConfig c;
    c.method = asked == "auto" ? (table ? "fasa" : "full") : asked;
    const int32_t advised = table ? table->n_tip : 0;
    const int32_t n_tip = advised > 0 ? advised : std::max(1, chunk_layout(model.h).n_chunk() / 4);
    c.n_tip = p.n_tip == 0 ? n_tip : p.n_tip;
    if (p.n_tip_fraction != 0) c.n_tip = share_of_chunks(p.n_tip_fraction, chunk_layout(model.h).n_chunk());
    c.n_fac = p.n_fac;
    c.n_fac_fraction = p.n_fac_fraction;
    c.n_sink = p.n_sink;
    c.n_recent = p.n_recent;
    c.dense_layers = p.dense_layers;
    const uint64_t kv_bytes = sizeof(uint16_t) * 2 * static_cast<uint64_t>(model.h.n_head_kv) * model.h.head_dim;
    c.dense_below = p.dense_below < 0 ? model.device->break_even(kv_bytes) : p.dense_below;
    c.page = p.page;
    c.chunks_per_head = p.chunks_per_head;
    c.tokens_per_head = p.tokens_per_head;
    c.criterion = resolve_criterion(p.criterion, table, p.chunks_per_head);
    c.schedule = p.pyramid ? BudgetSchedule::pyramid : BudgetSchedule::uniform;
    c.quest_bounds = p.quest_mean_std ? PageBounds::mean_std : PageBounds::min_max;
    c.observe_window = p.observe_window;
    c.refresh_every = p.refresh_every;
    c.redundancy_weight = p.redundancy_weight;
    check_select_config(c, chunk_layout(model.h));
    return c;
}

fasa_method_params describe_method(const SelectConfig& c) {
    fasa_method_params p = {};
    p.method = c.method.c_str();
    p.n_tip = c.n_tip;
    p.n_fac = c.n_fac;
    p.n_fac_fraction = c.n_fac_fraction;
    p.n_sink = c.n_sink;
    p.n_recent = c.n_recent;
    p.dense_layers = c.dense_layers;
    p.dense_below = c.dense_below;
    p.page = c.page;
    p.chunks_per_head = c.chunks_per_head;
    p.tokens_per_head = c.tokens_per_head;
    p.criterion = c.criterion == Criterion::mass ? FASA_CRITERION_MASS : FASA_CRITERION_CA;
    p.pyramid = c.schedule == BudgetSchedule::pyramid;
    p.quest_mean_std = c.quest_bounds == PageBounds::mean_std;
    p.observe_window = c.observe_window;
    p.refresh_every = c.refresh_every;
    p.redundancy_weight = c.redundancy_weight;
    return p;
}

ContextConfig resolve(const Model& model, const fasa_context_params& p, std::shared_ptr<const Table> table) {
    check_range("n_ctx", p.n_ctx, max_n_ctx);
    check_range("n_batch", p.n_batch, max_n_batch);
    check_range("n_seq", p.n_seq, max_n_seq);
    ContextConfig c{p.n_ctx, p.n_batch ? p.n_batch : default_n_batch, p.n_seq ? p.n_seq : 1, {}, std::move(table), 0, 0,
                    false};
    if (!c.table) c.table = model.table;
    c.select = resolve_method(model, p.method, c.table.get());
    c.host_rest = p.kv == FASA_KV_SPLIT;
    check_cache_rows(p.kv_cache_rows);
    c.dom_type = dom_type(p.k_dom);
    if (c.select.method == "fasa" && c.table && !c.select.chunks_per_head) {
        c.n_dom = 2 * c.select.n_tip;
        c.n_dense = std::min(c.select.dense_layers, model.h.n_layer);
    } else if (c.host_rest || c.dom_type != DomType::f16) {
        fail(FASA_ERROR_UNSUPPORTED,
             "%s a calibrated model and method fasa with dominant sets per KV head (chunks_per_head off), not method "
             "%s%s%s",
             c.host_rest ? "a cache split between device and host needs" : "dominant keys of 8 or 4 bits need",
             c.select.method.c_str(), c.select.chunks_per_head ? " with sets per query head" : "",
             c.table ? "" : " without a table");
    }
    c.n_batch_max = std::max(c.n_batch, min_n_batch);
    const ContextConfig split = with_host_rest(model, p, c);
    if (c.host_rest || (p.kv == FASA_KV_AUTO && c.n_dom > 0 && prefers_split(model, c, split))) c = split;
    limit_dense_steps(model, p.method, c);
    if (c.n_ctx == 0) c.n_ctx = choose_n_ctx(model, c);
    c.n_batch = std::min(c.n_batch_max, c.n_ctx);
    check_n_ctx(model, c);
    return c;
}

void limit_dense_steps(const Model& model, const fasa_method_params& p, ContextConfig& c) {
    if (!c.host_rest || !model.device->has_own_memory() || c.select.method != "fasa") return;
    const int32_t most = std::max(c.select.n_fac, c.n_cache_row);
    if (p.dense_below > most) {
        fail(FASA_ERROR_ARGUMENT,
             "dense_below is %d, but the rows of this cache lie in host memory: a dense step may read %d of them, the "
             "larger of n_fac and kv_cache_rows",
             p.dense_below, most);
    }
    c.select.dense_below = std::min(c.select.dense_below, most);
}

SelectShape select_shape(const Hparams& h, const ContextConfig& c) {
    return {h.n_layer, h.n_head, h.n_head_kv, c.n_ctx, c.n_seq, chunk_layout(h)};
}

std::vector<int16_t> cache_order(const Hparams& h, const ContextConfig& c) {
    std::vector<int16_t> order;
    if (c.n_dom == 0) return order;
    const ChunkLayout layout = chunk_layout(h);
    for (int32_t layer = 0; layer < h.n_layer; ++layer) {
        for (int32_t head_kv = 0; head_kv < h.n_head_kv; ++head_kv) {
            std::vector<uint16_t> chosen;
            if (layer >= c.n_dense) {
                chosen = fill_dims(layout, c.table->ranking(layer, head_kv, c.select.criterion), c.n_dom);
            }
            const auto dims = dim_order(layout, chosen);
            order.insert(order.end(), dims.begin(), dims.end());
        }
    }
    return order;
}

}  // namespace fasa
