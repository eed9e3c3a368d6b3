// Calibration [FASA §3]: how well every frequency chunk agrees with its head, and which chunks hold most attention
// together, from the queries that a tap recorded and the keys still in the cache.
#pragma once

#include "runtime/context.h"

namespace fasa {

struct CalibrateConfig {
    int32_t k;                 // best positions that CA compares
    int32_t n_fac;             // positions that may hold mass, forced ones included
    int32_t n_sink, n_recent;  // forced ones: the first, the last
    int32_t n_joint;           // chunks chosen jointly; the others follow by CA
    int32_t seq;               // steps of this sequence only; -1: of all
    int32_t max_steps;         // used, spread evenly over the recorded ones; 0: all
};

// Where to write; a nullptr is not computed.
struct Calibration {
    float* ca;             // [n_layer][n_head][n_chunk], 0..1
    uint16_t* order;       // [n_layer][n_head_kv][n_chunk], best first by mass
    uint16_t* order_head;  // [n_layer][n_head][n_chunk]
};

// CA_K(chunk) = |TopK(q . key) and TopK(the same over the chunk's dims)| / K, raw scores, mean over the recorded steps
// with more than K positions. Mass: chunks are added one at a time, each time the one with which the n_fac positions
// ranked by the summed scores of the set hold the most attention, mean over steps; for a KV head, scores are summed and
// attention is averaged over its query heads, as inference ranks. A query head's set is chosen with as many times fewer
// steps as there are heads in its group. Returns the number of steps used.
//
// The recorded positions must still be in the cache. Throws ARGUMENT when no step is long enough, MEMORY when the work
// space, (head_dim + 3 * steps) floats a cached position, does not fit, CANCELLED when progress returns false.
int32_t calibrate(const Calibration& out, Context& context, const CalibrateConfig& config,
                  const Context::Progress& progress);

}  // namespace fasa
