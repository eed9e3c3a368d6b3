// Scores by coded dominant keys (KeyCodes) on tensor cores.
#pragma once

#include "backend/cuda/score_task.cuh"

namespace fasa::cuda {

// The kernel for rows that are a multiple of 8 bytes and lie where 16 can be read at a time; else none (kernel:
// nullptr).
ScoreKernel coded_scores(const KvView& kv);

}  // namespace fasa::cuda
