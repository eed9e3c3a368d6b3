#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace fasa {
namespace {

// YaRN (arXiv 2309.00071 §3.2): pairs that turn more than beta_fast times over the original context keep their
// frequency, those that turn less than beta_slow times are interpolated, with a ramp between.
double yarn_pair(const Hparams& h, double turns) {
    return h.n_rot * std::log(h.rope_ctx_orig / (turns * 2 * std::numbers::pi)) / (2 * std::log(h.rope_freq_base));
}

double yarn_keep(const Hparams& h, int pair) {
    const double low = std::max(0.0, std::floor(yarn_pair(h, h.yarn_beta_fast)));
    const double high = std::min(h.n_rot - 1.0, std::ceil(yarn_pair(h, h.yarn_beta_slow)));
    const double ramp = (pair - low) / std::max(0.001, high - low);
    return (1 - std::clamp(ramp, 0.0, 1.0)) * h.yarn_ext_factor;
}

}  // namespace

Rope make_rope(const Hparams& h, const float* factors) {
    Rope rope{h.arch->rope_layout, h.n_rot, {}, 1.0};
    const bool yarn = h.rope_scaling == RopeScaling::yarn && h.yarn_ext_factor != 0;
    for (int i = 0; i < h.n_rot / 2; ++i) {
        const double base = std::pow(static_cast<double>(h.rope_freq_base), -2.0 * i / h.n_rot);
        const double kept = base / (factors ? factors[i] : 1.0f);
        const double keep = yarn ? yarn_keep(h, i) : 0.0;
        rope.frequency.push_back(kept * (keep + (1 - keep) / h.rope_factor));
    }
    rope.magnitude = h.rope_attn_factor * (yarn && h.rope_factor > 1 ? 1 + 0.1 * std::log(h.rope_factor) : 1.0);
    return rope;
}

}  // namespace fasa
