// The calibration table: how well every frequency chunk agrees with its head, and which chunks to take [FASA §3].
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gguf/file.h"
#include "select/chunks.h"

namespace fasa {

enum class Criterion {
    ca,   // the paper's: mean contextual agreement, each chunk by itself
    mass  // chosen jointly for the attention mass that the set captures
};

struct Table {
    int32_t n_layer, n_head, n_head_kv, n_chunk;
    Criterion criterion;               // the one to use unless told otherwise
    std::vector<float> ca;             // [n_layer][n_head][n_chunk], 0..1
    std::vector<uint16_t> order;       // [n_layer][n_head_kv][n_chunk], best first by mass; or empty
    std::vector<uint16_t> order_head;  // [n_layer][n_head][n_chunk], likewise per query head; or empty
    int32_t n_tip = 0;                 // recommended number of dominant chunks; 0: none

    // All chunks, best first, for a KV head (CA: averaged over the group) or a query head. Throws ARGUMENT when the
    // table was made without that criterion.
    std::vector<uint16_t> ranking(int32_t layer, int32_t head_kv, Criterion by) const;
    std::vector<uint16_t> ranking_of_head(int32_t layer, int32_t head, Criterion by) const;
};

// Throws FORMAT naming what is wrong: sizes, NaN or values outside [0, 1], orders that are no permutation.
void check_table(const Table& table, const std::string& source);

struct TableShape {
    int32_t n_layer, n_head, n_head_kv;
    ChunkLayout layout;
};

// The table in a file's metadata (keys fasa.*); nothing when it has none. Throws FORMAT when it does not fit the model
// or is a part of a table, UNSUPPORTED for another version. Of recommended settings only n_tip is followed; n_fac and
// dense_layers are checked and logged.
std::optional<Table> read_table(const gguf::File& file, const TableShape& shape);

// "interleaved" or "half_split"
const char* layout_name(RopeLayout layout);

}  // namespace fasa
