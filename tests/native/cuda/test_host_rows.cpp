// Prefill over rows in host memory: the same bits as with all rows on the device, and every row where it belongs.
#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "backend/cuda/host_rows.h"
#include "base/half.h"
#include "check.h"
#include "device_array.h"
#include "random_weights.h"

using namespace fasa;
using fasa::test::DeviceArray;

namespace {

constexpr int32_t chunk = cuda::prefill_chunk, n_ctx = 2 * chunk + 200, n_seq = 2, seq = 1, n_batch = 24;
constexpr int n_head = 4, n_head_kv = 2;
constexpr cuda::PrefillTuning tuning = {false, false, 1000};

std::vector<uint16_t> random_halves(int64_t n, uint32_t seed) {
    std::vector<uint16_t> halves;
    for (const float x : test::random_floats(n, seed)) halves.push_back(float_to_half(x));
    return halves;
}

// A layer with its rows on the device, and once more with those of all but some positions in host memory.
struct LayerPair {
    std::vector<uint16_t> rows;
    DeviceArray<uint16_t> dom, rest;
    cuda::PinnedBuffer host;
    KvView whole, split;

    LayerPair(int head_dim, int n_dom, uint32_t seed)
        : rows(random_halves(int64_t{n_seq} * n_head_kv * n_ctx * (2 * head_dim - n_dom), seed)),
          dom(random_halves(int64_t{n_seq} * n_head_kv * n_ctx * n_dom, seed + 1)),
          rest(rows),
          host(rows.size() * sizeof(uint16_t), "rows of a test") {
        whole = {dom.data(), rest.data(), nullptr, n_ctx, n_head_kv, head_dim, n_dom};
        split = whole;
        split.rest = static_cast<uint16_t*>(host.data());
        split.host_layer = 0;
    }
    // The host has the rows before pos0, and nonsense from there on.
    void set_past(int32_t pos0) {
        std::memcpy(split.rest, rows.data(), host.n_bytes());
        for (int head = 0; head < n_head_kv; ++head) {
            std::fill_n(split.rest_at(seq, head, pos0), (n_ctx - pos0) * split.row_values(), uint16_t{0x7e00});
        }
    }
    // The host's rows below n_pos are those of the device, and no others were touched.
    bool host_is_right(int32_t pos0, int32_t n_pos) {
        std::vector<uint16_t> found(split.rest, split.rest + rows.size());
        set_past(pos0);
        for (int head = 0; head < n_head_kv; ++head) {
            const int64_t at = split.row(seq, head, pos0) * split.row_values();
            std::copy_n(&rows[static_cast<size_t>(at)], (n_pos - pos0) * split.row_values(), split.rest + at);
        }
        return std::equal(found.begin(), found.end(), split.rest);
    }
    // Rows of a batch, as rope_store stages them: [n_head_kv][n][row_values].
    std::vector<uint16_t> batch(int32_t pos0, int32_t n) const {
        std::vector<uint16_t> result;
        for (int head = 0; head < n_head_kv; ++head) {
            const auto first = rows.begin() + split.row(seq, head, pos0) * split.row_values();
            result.insert(result.end(), first, first + n * split.row_values());
        }
        return result;
    }
};

class Lab {
   public:
    explicit Lab(const LayerPair& layer)
        : limits_{n_batch,
                  0,
                  n_head,
                  n_head_kv,
                  layer.whole.head_dim,
                  n_ctx,
                  0,
                  static_cast<int32_t>(layer.whole.row_values())},
          memory_(take(nullptr)) {
        take(memory_.data());
        rows_.emplace(host_memory_);
    }

    void check_batch(LayerPair& layer, int32_t pos0, int32_t n) {
        const KvView& kv = layer.split;
        const auto n_q = static_cast<size_t>(n) * n_head * static_cast<size_t>(kv.head_dim);
        const DeviceArray<float> q(test::random_floats(static_cast<int64_t>(n_q), 7)), y(n_q), expected(n_q);
        const DeviceArray<cuda::Step> step(std::vector<cuda::Step>{{seq, pos0}});
        const auto attend = [&](float* to, const KvView& view, const cuda::PrefillRange& range) {
            cuda::attend_prefill(to, q.data(), n_head, 0.3f, view, step.data(), n, pos0 + n, range, scratch_, tuning,
                                 stream_.get());
        };
        attend(expected.data(), layer.whole, {});
        const std::vector<float> right = expected.host();

        layer.set_past(pos0);
        const uint64_t before = rows_->n_bytes();
        const std::vector<uint16_t> batch = layer.batch(pos0, n);
        uint16_t* staged = rows_->stage(stream_.get());
        cuda::check(cudaMemcpyAsync(staged, batch.data(), batch.size() * sizeof(uint16_t), cudaMemcpyHostToDevice,
                                    stream_.get()),
                    "staging rows");
        rows_->send(kv, {seq, pos0, n}, stream_.get());
        rows_->for_each_tile(kv, {seq, pos0, n}, stream_.get(),
                             [&](const cuda::PrefillRange& range) { attend(y.data(), kv, range); });
        stream_.wait();
        rows_->wait();
        const std::vector<float> found = y.host();
        CHECK(std::memcmp(found.data(), right.data(), n_q * sizeof(float)) == 0);
        CHECK(layer.host_is_right(pos0, pos0 + n));
        const auto row_bytes = static_cast<uint64_t>(2 * kv.row_values());
        CHECK(rows_->n_bytes() - before == row_bytes * n_head_kv * static_cast<uint64_t>(pos0));
    }

   private:
    size_t take(void* memory) {
        Arena arena(memory);
        scratch_ = cuda::PrefillScratch::take(arena, limits_);
        host_memory_ = cuda::HostRows::Memory::take(arena, limits_, 1);
        return arena.used();
    }

    OpsLimits limits_;
    cuda::PrefillScratch scratch_;
    cuda::HostRows::Memory host_memory_;
    DeviceArray<uint8_t> memory_;
    cuda::Stream stream_;
    std::optional<cuda::HostRows> rows_;
};

}  // namespace

TEST(rows_in_host_memory_give_the_bits_of_rows_on_the_device) {
    for (const auto& [head_dim, n_dom] : {std::pair{64, 16}, std::pair{20, 6}, std::pair{64, 0}}) {
        LayerPair first(head_dim, n_dom, 1), second(head_dim, n_dom, 5);
        Lab lab(first);
        lab.check_batch(first, 0, n_batch);
        lab.check_batch(second, chunk - 7, 11);  // part of the batch in each of two tiles
        lab.check_batch(first, 2 * chunk, 10);   // a tile of the batch alone
        lab.check_batch(second, 2 * chunk + 100, 12);
        lab.check_batch(first, chunk - n_batch, n_batch);
    }
}

TEST(tiles_of_rows_are_as_large_as_wanted_and_no_larger_than_the_context) {
    OpsLimits limits{n_batch, 0, n_head, n_head_kv, 64, n_ctx};
    const auto tile = [&](size_t n_bytes) {
        Arena arena;
        return cuda::HostRows::Memory::take(arena, limits, n_bytes).n_tile_pos;
    };
    CHECK(tile(1 << 20) == 0);
    limits.host_row_values = 100;
    const size_t chunk_bytes = size_t{2} * n_head_kv * 100 * chunk;
    CHECK(tile(1) == chunk);
    CHECK(tile(2 * chunk_bytes - 1) == chunk);
    CHECK(tile(2 * chunk_bytes) == 2 * chunk);
    CHECK(tile(100 * chunk_bytes) == 3 * chunk);
}
