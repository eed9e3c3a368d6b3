// Frequency chunks of a head: the pairs of dims that one RoPE angle turns, and single dims outside RoPE [FASA §3].
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/views.h"

namespace fasa {

struct ChunkLayout {
    RopeLayout rope;
    int32_t n_rot, head_dim;  // n_rot 0: no RoPE, every dim is a chunk of its own

    int32_t n_chunk() const { return head_dim - n_rot / 2; }
    int32_t size(int32_t chunk) const { return chunk < n_rot / 2 ? 2 : 1; }
    // The file's dims of a chunk. Pairs come first; chunk n_rot / 2 + i is dim n_rot + i.
    std::vector<int16_t> dims(int32_t chunk) const;
};

// The leading chunks of a ranking (all chunks, best first) that fill exactly n_dom dims, none of them divided. n_dom is
// even and at most head_dim.
std::vector<uint16_t> fill_dims(const ChunkLayout& layout, std::span<const uint16_t> ranking, int32_t n_dom);

// All dims of a head, those of the chosen chunks first, each group in the order given: [head_dim].
std::vector<int16_t> dim_order(const ChunkLayout& layout, std::span<const uint16_t> chosen);

}  // namespace fasa
