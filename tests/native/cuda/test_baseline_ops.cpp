// Small steps of single methods: the CUDA backend's results are the CPU's, bit for bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>

#include "backend/cpu/baselines.h"
#include "backend/cuda/baselines.h"
#include "check.h"
#include "device_array.h"
#include "random_weights.h"

using namespace fasa;
using fasa::test::DeviceArray;
using fasa::test::random_floats;

namespace {

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// n of the positions below n_pos, the last one among them, ascending.
std::vector<int32_t> some_of(int32_t n_pos, int32_t n, uint32_t seed) {
    std::vector<int32_t> list(static_cast<size_t>(n_pos - 1));
    std::iota(list.begin(), list.end(), 0);
    std::shuffle(list.begin(), list.end(), std::mt19937(seed));
    list.resize(static_cast<size_t>(n - 1));
    std::sort(list.begin(), list.end());
    list.push_back(n_pos - 1);
    return list;
}

// Lists on both sides.
struct Lists {
    Lists(const std::vector<std::vector<int32_t>>& lists, int32_t room)
        : capacity(room), positions(lists.size() * static_cast<size_t>(capacity), -7) {
        for (size_t set = 0; set < lists.size(); ++set) {
            count.push_back(static_cast<int32_t>(lists[set].size()));
            std::copy(lists[set].begin(), lists[set].end(), positions.begin() + static_cast<int64_t>(set) * capacity);
        }
        device_positions = std::make_unique<DeviceArray<int32_t>>(positions);
        device_count = std::make_unique<DeviceArray<int32_t>>(count);
    }
    Selection host() { return {positions.data(), count.data(), static_cast<int32_t>(count.size()), capacity}; }
    Selection device() {
        return {device_positions->data(), device_count->data(), static_cast<int32_t>(count.size()), capacity};
    }

    int32_t capacity;
    std::vector<int32_t> positions, count;
    std::unique_ptr<DeviceArray<int32_t>> device_positions, device_count;
};

}  // namespace

TEST(cuda_clear_scores) {
    for (const auto& [n_set, n_ctx, first, n] : {std::tuple{1, 5, 4, 1}, {3, 700, 0, 700}, {8, 333, 17, 300}}) {
        std::vector<float> scores = random_floats(int64_t{n_set} * n_ctx, 1);
        DeviceArray<float> device(scores);
        cpu::clear_scores(scores.data(), n_set, n_ctx, first, n);
        cuda::clear_scores(device.data(), n_set, n_ctx, first, n, nullptr);
        CHECK(same_bits(device.host(), scores));
    }
}

TEST(cuda_keep_listed) {
    for (const auto& [n_ctx, n_pos, n_kept] : {std::tuple{10, 1, 1}, {700, 611, 40}, {700, 700, 700}, {900, 513, 1}}) {
        std::vector<float> scores = random_floats(int64_t{3} * n_ctx, 1);
        DeviceArray<float> device(scores);
        Lists lists({some_of(n_pos, n_kept, 1), some_of(n_pos, (n_kept + 1) / 2, 2), some_of(n_pos, n_kept, 3)},
                    n_kept + 3);
        cpu::keep_listed(scores.data(), n_ctx, n_pos, lists.host());
        cuda::keep_listed(device.data(), n_ctx, n_pos, lists.device(), nullptr);
        CHECK(same_bits(device.host(), scores));
        CHECK(std::count(scores.begin(), scores.begin() + n_pos, -INFINITY) == n_pos - n_kept);
    }
}

TEST(cuda_average_pages) {
    for (const int32_t page : {1, 2, 3, 16, 300, 4096}) {
        for (const int32_t n_pos : {1, 47, 256, 1031, 4099}) {
            const int32_t n_ctx = n_pos + 5;
            std::vector<float> scores = random_floats(int64_t{3} * n_ctx, 1);
            DeviceArray<float> device(scores);
            cpu::average_pages(scores.data(), 3, n_ctx, page, n_pos);
            cuda::average_pages(device.data(), 3, n_ctx, page, n_pos, nullptr);
            CHECK(same_bits(device.host(), scores));
        }
    }
}

TEST(cuda_expand_pages) {
    for (const auto& [page, n_pos, n_page] :
         {std::tuple{1, 900, 700}, {16, 333, 5}, {16, 336, 21}, {3, 2000, 600}, {4096, 100, 1}, {7, 701, 101}}) {
        const int32_t n_all = (n_pos + page - 1) / page;
        Lists lists({some_of(n_all, n_page, 1), some_of(n_all, (n_page + 1) / 2, 2)}, std::min(n_pos, n_page * page));
        Selection host = lists.host(), device = lists.device();
        cpu::expand_pages(host, page, n_pos);
        cuda::expand_pages(device, page, n_pos, nullptr);
        CHECK(lists.device_count->host() == lists.count);
        CHECK(lists.device_positions->host() == lists.positions);
        CHECK(host.list(0)[lists.count[0] - 1] == n_pos - 1);
    }
}

TEST(cuda_bound_queries) {
    for (const auto& [n_head, n_set, head_dim] : {std::tuple{1, 1, 2}, {6, 2, 20}, {8, 8, 300}, {12, 3, 128}}) {
        const std::vector<float> q = random_floats(int64_t{n_head} * head_dim, 1);
        std::vector<float> bounds(size_t{2} * n_set * head_dim);
        DeviceArray<float> device_q(q), device(bounds.size());
        cpu::bound_queries(bounds.data(), n_set, q.data(), n_head, head_dim);
        cuda::bound_queries(device.data(), n_set, device_q.data(), n_head, head_dim, nullptr);
        CHECK(same_bits(device.host(), bounds));
    }
}
