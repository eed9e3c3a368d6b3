// fasa.h: methods, calibration tables, looking inside.
#include <algorithm>

#include "capi/guard.h"
#include "capi/handles.h"

using namespace fasa;

namespace {

template <class T>
std::vector<T> copied(const T* values, size_t n) {
    return values ? std::vector<T>(values, values + n) : std::vector<T>{};
}

const Tap::Record& record_at(const Context& context, int32_t step, int32_t layer) {
    const int32_t n_steps = context.tap() ? context.tap()->n_steps() : 0;
    if (step < 0 || step >= n_steps || layer < 0 || layer >= context.model().h.n_layer) {
        fail(FASA_ERROR_ARGUMENT, "no record of step %d, layer %d: %d steps were recorded", step, layer, n_steps);
    }
    return context.tap()->at(step, layer);
}

}  // namespace

extern "C" {

void fasa_method_params_default(fasa_method_params* out) {
    if (out) *out = default_method();
}

const char* fasa_supported_methods(void) { return selector_names(); }

fasa_status fasa_method_set(fasa_context* ctx, const fasa_method_params* params) {
    return guard([&] {
        require(ctx, "ctx");
        require(params, "params");
        ctx->context.set_method(*params);
    });
}

void fasa_method_get(fasa_method_params* out, const fasa_context* ctx) {
    if (out && ctx) *out = describe_method(ctx->context.config().select);
}

fasa_status fasa_table_create(fasa_table** out, const fasa_model* model, fasa_criterion criterion, const float* ca,
                              const uint16_t* order, const uint16_t* order_head) {
    return guard([&] {
        require(out, "out");
        require(model, "model");
        require(ca, "ca");
        *out = nullptr;
        const Hparams& h = model->model->h;
        const int32_t n_chunk = chunk_layout(h).n_chunk();
        const size_t n = size_t{1} * h.n_layer * n_chunk;
        auto table = std::make_shared<Table>(Table{h.n_layer, h.n_head, h.n_head_kv, n_chunk,
                                                   criterion == FASA_CRITERION_MASS ? Criterion::mass : Criterion::ca,
                                                   copied(ca, n * h.n_head), copied(order, n * h.n_head_kv),
                                                   copied(order_head, n * h.n_head)});
        check_table(*table, "the table given");
        if (table->criterion == Criterion::mass && table->order.empty()) {
            fail(FASA_ERROR_ARGUMENT, "criterion mass needs an order of chunks");
        }
        *out = new fasa_table{std::move(table)};
    });
}

void fasa_table_free(fasa_table* table) { delete table; }

bool fasa_model_has_table(const fasa_model* model) { return model && model->model->table; }

fasa_status fasa_tap_start(fasa_context* ctx, int32_t n_steps) {
    return guard([&] {
        require(ctx, "ctx");
        ctx->context.start_tap(n_steps);
    });
}

int32_t fasa_tap_steps(const fasa_context* ctx) {
    return ctx && ctx->context.tap() ? ctx->context.tap()->n_steps() : 0;
}

fasa_status fasa_tap_read(const fasa_context* ctx, int32_t step, int32_t layer, int32_t* seq, int32_t* n_pos, float* q,
                          int32_t* n_set, int32_t* count, int32_t* positions) {
    return guard([&] {
        require(ctx, "ctx");
        const Tap::Record& record = record_at(ctx->context, step, layer);
        if (seq) *seq = record.seq;
        if (n_pos) *n_pos = record.n_pos;
        if (q) std::copy(record.q.begin(), record.q.end(), q);
        if (n_set) *n_set = static_cast<int32_t>(record.positions.size());
        for (size_t set = 0; set < record.positions.size(); ++set) {
            const auto& list = record.positions[set];
            if (count) count[set] = static_cast<int32_t>(list.size());
            if (positions) std::copy(list.begin(), list.end(), positions + set * record.n_pos);
        }
    });
}

fasa_status fasa_kv_read(float* k, float* v, const fasa_context* ctx, int32_t seq, int32_t layer, int32_t head_kv,
                         int32_t first, int32_t n) {
    return guard([&] {
        require(ctx, "ctx");
        ctx->context.read_kv(k, v, seq, layer, head_kv, first, n);
    });
}

}  // extern "C"
