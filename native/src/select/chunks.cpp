#include "select/chunks.h"

#include <algorithm>

namespace fasa {

std::vector<int16_t> ChunkLayout::dims(int32_t chunk) const {
    const int32_t half = n_rot / 2;
    if (chunk >= half) return {static_cast<int16_t>(chunk + half)};
    if (rope == RopeLayout::interleaved) return {static_cast<int16_t>(2 * chunk), static_cast<int16_t>(2 * chunk + 1)};
    return {static_cast<int16_t>(chunk), static_cast<int16_t>(chunk + half)};
}

std::vector<uint16_t> fill_dims(const ChunkLayout& layout, std::span<const uint16_t> ranking, int32_t n_dom) {
    std::vector<uint16_t> chosen, passed_over;
    int32_t room = n_dom;
    for (const uint16_t chunk : ranking) {
        if (layout.size(chunk) <= room) {
            chosen.push_back(chunk);
            room -= layout.size(chunk);
        } else {
            passed_over.push_back(chunk);
        }
    }
    if (room == 1) {  // only pairs are left: the last single dim gives way to the best of them
        const auto single =
            std::find_if(chosen.rbegin(), chosen.rend(), [&](uint16_t c) { return layout.size(c) == 1; });
        chosen.erase(std::next(single).base());
        chosen.push_back(passed_over.front());
    }
    return chosen;
}

std::vector<int16_t> dim_order(const ChunkLayout& layout, std::span<const uint16_t> chosen) {
    std::vector<int16_t> order;
    std::vector<bool> taken(static_cast<size_t>(layout.head_dim));
    for (const uint16_t chunk : chosen) {
        for (const int16_t dim : layout.dims(chunk)) {
            order.push_back(dim);
            taken[dim] = true;
        }
    }
    for (int16_t dim = 0; dim < layout.head_dim; ++dim) {
        if (!taken[dim]) order.push_back(dim);
    }
    return order;
}

}  // namespace fasa
