#include "backend/cpu/topk.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fasa::cpu {
namespace {

constexpr int32_t step = 256;  // scores looked at between two looks at whether the buffer is full

// Room for k candidates, as many again so that pruning is rare, and one step.
size_t capacity(int32_t n_ctx) { return 2 * static_cast<size_t>(n_ctx) + 4 * step; }

}  // namespace

AppendAbove append_above([[maybe_unused]] Isa isa) {
#ifdef FASA_X86
    if (isa == Isa::avx512) return avx512::append_above;
    if (isa == Isa::avx2) return avx2::append_above;
#endif
    return scalar::append_above;
}

size_t TopK::scratch_bytes(const OpsLimits& limits, int n_threads) {
    return static_cast<size_t>(n_threads) * capacity(limits.n_ctx) * sizeof(Candidate);
}

TopK::TopK(Team& team, const OpsLimits& limits)
    : append_above_(append_above(cpu_info().isa)),
      team_(team),
      n_ctx_(limits.n_ctx),
      memory_(scratch_bytes(limits, team.n_threads()), "selection scratch") {}

// The threshold is the k-th best score so far, so after the first few steps almost nothing passes it and the cost is
// one comparison a score. A later score equal to the threshold loses to the earlier one, as it must.
Candidate* TopK::best(const float* scores, int32_t first, int32_t last, int32_t k, int thread) {
    Candidate* kept = static_cast<Candidate*>(memory_.data()) + static_cast<size_t>(thread) * capacity(n_ctx_);
    const int32_t full = 2 * k + step;
    int32_t n = 0;
    for (; n < std::min(full, last - first); ++n) {
        const float score = scores[first + n];
        kept[n] = {std::isnan(score) ? -std::numeric_limits<float>::infinity() : score, first + n};
    }
    const auto prune = [&] {
        if (n > k) std::nth_element(kept, kept + k - 1, kept + n, better);
        n = std::min(n, k);
        return kept[k - 1].score;
    };
    if (first + n == last) {
        prune();
        return kept;
    }
    float threshold = prune();
    for (int32_t at = first + full; at < last; at += step) {
        n += append_above_(scores + at, std::min(step, last - at), threshold, at, kept + n);
        if (n > full) threshold = prune();
    }
    prune();
    return kept;
}

void TopK::run(const float* scores, int32_t n_pos, int32_t keep, int32_t n_sink, int32_t n_recent,
               Selection& selection) {
    keep = std::min({keep, n_pos, selection.capacity});
    n_sink = std::min(n_sink, keep);
    n_recent = std::min(n_recent, keep - n_sink);
    const int32_t n_best = keep - n_sink - n_recent;
    team_.run(selection.n_set, [&](int64_t set, int thread) {
        int32_t* list = selection.list(static_cast<int32_t>(set));
        int32_t n = 0;
        for (; n < n_sink; ++n) list[n] = n;
        if (n_best > 0) {
            const Candidate* kept = best(scores + set * n_ctx_, n_sink, n_pos - n_recent, n_best, thread);
            for (int32_t i = 0; i < n_best; ++i) list[n++] = kept[i].pos;
            std::sort(list + n_sink, list + n);
        }
        for (int32_t pos = n_pos - n_recent; pos < n_pos; ++pos) list[n++] = pos;
        selection.count[set] = n;
    });
}

}  // namespace fasa::cpu
