// fasa.h: context, sequences.
#include "runtime/context.h"

#include "capi/guard.h"
#include "capi/handles.h"
#include "runtime/plan.h"

using namespace fasa;

namespace {

static_assert(FASA_ROWS_ALIKE == n_rows_alike);

std::span<const int32_t> token_span(const int32_t* tokens, int32_t n) {
    if (n < 0) fail(FASA_ERROR_ARGUMENT, "n is %d, expected 0 or more", n);
    if (n > 0) require(tokens, "tokens");
    return {tokens, static_cast<size_t>(n)};
}

Context::Progress reporter(fasa_progress_fn progress, void* user) {
    return [=](float fraction) { return !progress || progress(fraction, user); };
}

fasa_context_params defaulted(const fasa_context_params* params) {
    if (params) return *params;
    fasa_context_params p = {};
    p.method = default_method();
    return p;
}

std::shared_ptr<const Table> table_of(const fasa_context_params* params) {
    return params && params->table ? params->table->table : nullptr;
}

}  // namespace

extern "C" {

void fasa_context_params_default(fasa_context_params* out) {
    if (!out) return;
    *out = {};
    out->method = default_method();
}

fasa_status fasa_plan_get(fasa_plan* out, const fasa_model* model, const fasa_context_params* params) {
    return guard([&] {
        require(out, "out");
        require(model, "model");
        *out = make_plan(*model->model, resolve(*model->model, defaulted(params), table_of(params)));
    });
}

fasa_status fasa_plan_check(const fasa_plan* plan) {
    return guard([&] {
        require(plan, "plan");
        check_plan(*plan);
    });
}

fasa_status fasa_context_create(fasa_context** out, const fasa_model* model, const fasa_context_params* params) {
    return guard([&] {
        require(out, "out");
        require(model, "model");
        *out = nullptr;
        *out = new fasa_context{{model->model, defaulted(params), table_of(params)}};
    });
}

void fasa_context_free(fasa_context* ctx) { delete ctx; }

void fasa_context_plan(fasa_plan* out, const fasa_context* ctx) {
    if (out && ctx) *out = ctx->context.plan();
}

void fasa_context_abort_set(fasa_context* ctx, fasa_abort_fn fn, void* user) {
    if (ctx) ctx->context.set_abort(fn, user);
}

fasa_status fasa_decode(fasa_context* ctx, int32_t seq, const int32_t* tokens, int32_t n, fasa_progress_fn progress,
                        void* user) {
    return guard([&] {
        require(ctx, "ctx");
        ctx->context.decode(seq, token_span(tokens, n), reporter(progress, user));
    });
}

const float* fasa_logits(const fasa_context* ctx) { return ctx ? ctx->context.logits() : nullptr; }

fasa_status fasa_score(float* logprob, fasa_context* ctx, int32_t seq, const int32_t* tokens, int32_t n,
                       fasa_progress_fn progress, void* user) {
    return guard([&] {
        require(ctx, "ctx");
        require(logprob, "logprob");
        ctx->context.score(logprob, seq, token_span(tokens, n), reporter(progress, user));
    });
}

void fasa_stats_get(fasa_stats* out, const fasa_context* ctx) {
    if (out && ctx) *out = ctx->context.stats();
}

void fasa_stats_reset(fasa_context* ctx) {
    if (ctx) ctx->context.reset_stats();
}

void fasa_cancel(fasa_context* ctx) {
    if (ctx) ctx->context.cancel();
}

int32_t fasa_seq_length(const fasa_context* ctx, int32_t seq) {
    return ctx ? static_cast<int32_t>(ctx->context.tokens(seq).size()) : 0;
}

const int32_t* fasa_seq_tokens(const fasa_context* ctx, int32_t seq) {
    return ctx ? ctx->context.tokens(seq).data() : nullptr;
}

fasa_status fasa_seq_truncate(fasa_context* ctx, int32_t seq, int32_t n_tokens) {
    return guard([&] {
        require(ctx, "ctx");
        ctx->context.truncate(seq, n_tokens);
    });
}

fasa_status fasa_seq_copy(fasa_context* ctx, int32_t dst, int32_t src, int32_t n_tokens) {
    return guard([&] {
        require(ctx, "ctx");
        ctx->context.copy(dst, src, n_tokens);
    });
}

fasa_status fasa_seq_save(const fasa_context* ctx, int32_t seq, const char* path) {
    return guard([&] {
        require(ctx, "ctx");
        require(path, "path");
        ctx->context.save(seq, path);
    });
}

fasa_status fasa_seq_load(fasa_context* ctx, int32_t seq, const char* path) {
    return guard([&] {
        require(ctx, "ctx");
        require(path, "path");
        ctx->context.load(seq, path);
    });
}

}  // extern "C"
