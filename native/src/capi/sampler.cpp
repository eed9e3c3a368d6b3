// fasa.h: sampling.
#include "runtime/sampler.h"

#include "capi/guard.h"
#include "capi/handles.h"

using namespace fasa;

extern "C" {

void fasa_sampler_params_default(fasa_sampler_params* out) {
    if (!out) return;
    *out = {};
    out->temperature = 0.8f;
    out->top_k = 40;
    out->top_p = 0.95f;
    out->min_p = 0.05f;
    out->repeat_penalty = 1.0f;
    out->penalty_window = 64;
}

fasa_status fasa_sampler_create(fasa_sampler** out, const fasa_sampler_params* params) {
    return guard([&] {
        require(out, "out");
        require(params, "params");
        *out = nullptr;
        *out = new fasa_sampler{Sampler(*params)};
    });
}

void fasa_sampler_free(fasa_sampler* sampler) { delete sampler; }

fasa_status fasa_sample(int32_t* out, fasa_sampler* sampler, const float* logits, int32_t n_vocab,
                        const int32_t* previous, int32_t n_previous) {
    return guard([&] {
        require(out, "out");
        require(sampler, "sampler");
        require(logits, "logits");
        if (n_vocab <= 0 || n_previous < 0 || (n_previous > 0 && !previous)) {
            fail(FASA_ERROR_ARGUMENT, "n_vocab is %d and n_previous is %d", n_vocab, n_previous);
        }
        *out = sampler->sampler.sample({logits, static_cast<size_t>(n_vocab)},
                                       {previous, static_cast<size_t>(n_previous)});
    });
}

}  // extern "C"
