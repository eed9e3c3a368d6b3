// Rotary position embedding: angles per position, with every supported scaling folded into one table of frequencies.
#pragma once

#include <vector>

#include "model/hparams.h"

namespace fasa {

struct Rope {
    RopeLayout layout;
    int32_t n_rot;
    std::vector<double> frequency;  // [n_rot / 2], radians per position, scaling included
    double magnitude;               // factor on cos and sin (YaRN)
};

// factors: the model's rope_freqs tensor, [n_rot / 2], or nullptr.
Rope make_rope(const Hparams& h, const float* factors);

}  // namespace fasa
