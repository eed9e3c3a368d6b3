// The reference of the filter in front of the top-k.
#include "backend/cpu/topk.h"

namespace fasa::cpu::scalar {
namespace {

int filter(const float* scores, int n, float threshold, int32_t first, Candidate* out) {
    int count = 0;
    for (int j = 0; j < n; ++j) {
        if (scores[j] > threshold) out[count++] = {scores[j], first + j};
    }
    return count;
}

}  // namespace

const AppendAbove append_above = filter;

}  // namespace fasa::cpu::scalar
