#include "backend/cpu/linear.h"

#include <algorithm>

#include "backend/cpu/linear_kernels.h"
#include "base/buffer.h"
#include "base/cpu.h"
#include "base/error.h"

namespace fasa::cpu {

namespace {

constexpr int CHUNKS_PER_THREAD = 8;     // enough to even out threads that are held up
constexpr int64_t QUANTIZE_PART = 8192;  // values; a multiple of 32, and enough that one token is not worth two threads

constexpr int64_t N_IN_MAX = 1 << 24;  // the kernels address the rows of a tile, at most 32, by 32-bit byte offsets

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Everything that run() needs, laid out in one buffer.
struct Scratch {
    Activations a;
    uint8_t* tiles;  // [n_threads][tile_bytes]
    size_t tile_bytes;

    Scratch(Arena& arena, const LinearKernels& kernels, int n_threads, int n_max, int64_t n_in_max) {
        const size_t n = static_cast<size_t>(n_max) * static_cast<size_t>(n_in_max);
        a = {arena.take<int8_t>(n), arena.take<float>(n / 32), arena.take<float>(n / 32), arena.take<float>(n / 16)};
        tile_bytes = (kernels.scratch_bytes() + 63) & ~size_t{63};
        tiles = arena.take<uint8_t>(static_cast<size_t>(n_threads) * tile_bytes);
    }
};

}  // namespace

const LinearKernels& linear_kernels() {
    switch (cpu_info().isa) {
#if FASA_X86
        case Isa::avx512:
            return avx512::linear_kernels();
        case Isa::avx2:
            return avx2::linear_kernels();
#endif
        default:
            return scalar::linear_kernels();
    }
}

struct Linear::Impl {
    Team& team;
    const LinearKernels& kernels;
    Buffer buffer;
    Arena arena;
    Scratch scratch;

    Impl(Team& t, int n_max, int64_t n_in_max)
        : team(t),
          kernels(linear_kernels()),
          buffer(scratch_bytes(t.n_threads(), n_max, n_in_max), "scratch of the matrix products"),
          arena(buffer.data()),
          scratch(arena, kernels, t.n_threads(), n_max, n_in_max) {}
};

Linear::Linear(Team& team, int n_max, int64_t n_in_max) {
    if (n_in_max > N_IN_MAX) {
        fail(FASA_ERROR_UNSUPPORTED, "a weight matrix has rows of %lld values; at most %lld are supported",
             static_cast<long long>(n_in_max), static_cast<long long>(N_IN_MAX));
    }
    impl_ = std::make_unique<Impl>(team, n_max, n_in_max);
}

Linear::~Linear() = default;

size_t Linear::scratch_bytes(int n_threads, int n_max, int64_t n_in_max) {
    Arena measure;
    Scratch(measure, linear_kernels(), n_threads, n_max, n_in_max);
    return measure.used();
}

void Linear::run(const LinearOut* out, int n_products, const float* x, int n) {
    const LinearKernels& kernels = impl_->kernels;
    const Scratch& scratch = impl_->scratch;
    Team& team = impl_->team;

    bool quantized = false;
    int64_t n_rows = 0;
    for (int p = 0; p < n_products; ++p) {
        quantized |= !is_float(out[p].w.dtype);
        n_rows += out[p].w.n_out;
    }
    if (quantized) {
        const int64_t n_values = static_cast<int64_t>(n) * out[0].w.n_in;
        team.run(ceil_div(n_values, QUANTIZE_PART), [&](int64_t part, int) {
            const int64_t begin = part * QUANTIZE_PART;
            kernels.quantize(x + begin, std::min(QUANTIZE_PART, n_values - begin), n, from(scratch.a, begin));
        });
    }

    const int64_t n_tiles = ceil_div(n_rows, kernels.tile);
    const int64_t chunk =
        kernels.tile * std::max<int64_t>(1, n_tiles / (CHUNKS_PER_THREAD * team.n_threads()));  // rows
    int64_t n_chunks = 0;
    for (int p = 0; p < n_products; ++p) n_chunks += ceil_div(out[p].w.n_out, chunk);
    team.run(n_chunks, [&](int64_t c, int thread) {
        int p = 0;
        for (; c >= ceil_div(out[p].w.n_out, chunk); ++p) c -= ceil_div(out[p].w.n_out, chunk);
        const int64_t begin = c * chunk, end = std::min(begin + chunk, out[p].w.n_out);
        kernels.rows({out[p], x, scratch.a, n}, begin, end, scratch.tiles + thread * scratch.tile_bytes);
    });
}

}  // namespace fasa::cpu
