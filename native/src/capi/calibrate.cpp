// fasa.h: calibration.
#include "runtime/calibrate.h"

#include "capi/guard.h"
#include "capi/handles.h"

using namespace fasa;

extern "C" {

void fasa_calibrate_params_default(fasa_calibrate_params* out) {
    if (out) *out = {256, 256, 4, 32, 32, -1, 0};
}

fasa_status fasa_calibrate(float* ca, uint16_t* order, uint16_t* order_head, int32_t* n_steps, fasa_context* ctx,
                           const fasa_calibrate_params* params, fasa_progress_fn progress, void* user) {
    return guard([&] {
        require(ctx, "ctx");
        require(params, "params");
        Poll& poll = ctx->context.start_polling();
        const int32_t used = calibrate({ca, order, order_head}, ctx->context,
                                       {params->k, params->n_fac, params->n_sink, params->n_recent, params->n_joint,
                                        params->seq, params->max_steps},
                                       [&](float fraction) {
                                           poll();
                                           return !progress || progress(fraction, user);
                                       });
        if (n_steps) *n_steps = used;
    });
}

}  // extern "C"
