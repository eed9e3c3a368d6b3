// Device memory that CUDA takes itself. It grants no look at these amounts before they are taken, so that they are
// bounded here, from measurements (docs/performance.md), and counted in every plan.
#pragma once

#include <cstdint>

namespace fasa::cuda {

// A context on a GPU of 132 multiprocessors: local memory of all threads that they hold at once, and the driver's own.
inline constexpr uint64_t context_bytes_assumed = uint64_t{512} << 20;
// Kernels, ours and cuBLAS's, which are loaded as they are first used; and what is lost to rounding: memory comes in
// pieces of 2 MiB.
inline constexpr uint64_t code_bytes = uint64_t{64} << 20;
// A recorded launch in a graph that was uploaded, and a graph besides its launches.
inline constexpr uint64_t graph_node_bytes = 8 << 10, graph_bytes = 64 << 10;

// Makes a GPU ready for this process, chooses it, and says what that took. A process has one context on a GPU;
// where that was there already, or where the driver's library for such questions is missing, the amount is the assumed
// one.
uint64_t start_context(int index);

}  // namespace fasa::cuda
