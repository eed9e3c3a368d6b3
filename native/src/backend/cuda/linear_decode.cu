#include "backend/cuda/linear_decode.h"

#include <algorithm>

#include "backend/cuda/linear_decode.cuh"
#include "backend/cuda/weights.h"
#include "base/error.h"

namespace fasa::cuda {

namespace {

using decode::Job;
using decode::MAX_PRODUCTS;
using decode::Product;
using decode::Team;
using decode::WARP;

constexpr int SHARED_BYTES = 48 * 1024;      // that any kernel may have
constexpr int SHARED_SUM_BYTES = 12 * 1024;  // at least, for the sums of the teams

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

uint32_t inverse(int n) { return static_cast<uint32_t>(ceil_div(1 << decode::INVERSE_BITS, n)); }

bool is_float(DType type) { return dtype_traits(type).block_values == 1; }

int n_multiprocessors() {
    int device = 0, n = 0;
    check(cudaGetDevice(&device), "finding the device in use");
    check(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device), "counting multiprocessors");
    return n;
}

// Threads that hold parts of a row: as many as it has parts, unless several passes over fewer parts keep a good deal
// more of the block busy.
void choose_team(Product& product, int64_t n_in, int n_warps) {
    const int values = !is_float(product.dtype) ? 32 : product.dtype == FASA_DTYPE_F32 ? 4 : 8;
    const int64_t n_parts = ceil_div(n_in, values);
    int64_t best = 0;
    for (int64_t n_passes = 1; 5 * best < 4 * n_warps * WARP; ++n_passes) {
        const int64_t team = ceil_div(ceil_div(n_parts, n_passes), WARP);
        if (team > n_warps) continue;
        const int64_t busy = n_warps / team * ceil_div(n_parts, n_passes);
        if (4 * busy > 5 * best) {
            best = busy;
            product.team_warps = static_cast<int>(team);
            product.n_passes = static_cast<int>(n_passes);
        }
        if (team == 1) break;
    }
}

Product product_of(const LinearOut& out) {
    Product p = {};
    p.w = static_cast<const uint8_t*>(out.w.data);
    p.row_bytes = static_cast<uint32_t>(out.w.row_bytes);
    p.bias = out.bias;
    p.y = out.y;
    p.n_out = out.w.n_out;
    p.dtype = out.w.dtype;
    p.add = out.add;
    return p;
}

// Shares the blocks out by bytes of weights; no block without a row for each of its teams.
int share_blocks(Job& job, int n_blocks, int n_warps) {
    double total = 0;
    for (int p = 0; p < job.n_products; ++p) {
        total += static_cast<double>(job.product[p].n_out) * job.product[p].row_bytes;
    }
    int first = 0;
    double before = 0;
    for (int p = 0; p < job.n_products; ++p) {
        Product& product = job.product[p];
        before += static_cast<double>(product.n_out) * product.row_bytes;
        product.n_teams = n_warps / product.team_warps;
        product.team_warps_inverse = inverse(product.team_warps);
        product.n_teams_inverse = inverse(product.n_teams);
        const int64_t useful = ceil_div(product.n_out, product.n_teams);
        const int64_t share = static_cast<int64_t>(before / total * n_blocks + 0.5) - first;
        const int64_t to_next = int64_t{product.row_bytes} * product.n_teams;
        product.to_odd = job.glu ? product.to_up : to_next;
        product.to_pair = job.glu ? to_next : 2 * to_next;
        product.first_block = first;
        product.n_blocks = static_cast<int>(std::clamp<int64_t>(share, 1, useful));
        product.block_rows = static_cast<int>(product.n_out / product.n_blocks);
        product.n_longer = static_cast<int>(product.n_out % product.n_blocks);
        first += product.n_blocks;
    }
    return first;
}

// Warps at work in a block of so many at most, for the product that leaves most idle.
int busy_warps(const Job& job, int64_t n_in, int most_warps) {
    int busy = most_warps;
    for (int p = 0; p < job.n_products; ++p) {
        Product product = job.product[p];
        choose_team(product, n_in, most_warps);
        busy = std::min(busy, most_warps / product.team_warps * product.team_warps);
    }
    return busy;
}

template <int N, Team TEAM>
void run(Job& job, int64_t n_in, bool mixed, cudaStream_t stream) {
    const int most_warps = mixed ? decode::max_warps_mixed<N> : decode::max_warps<N, TEAM>;
    int n_warps = 1;
    for (int p = 0; p < job.n_products; ++p) {
        choose_team(job.product[p], n_in, most_warps);
        n_warps = std::max(n_warps, most_warps / job.product[p].team_warps * job.product[p].team_warps);
    }
    const int n_blocks = share_blocks(job, n_multiprocessors(), n_warps);

    const int n_sums = (job.glu ? 2 : 1) * static_cast<int>(ceil_div(job.a.n, N)) * N;  // of a row of y
    int64_t sum_bytes = 0, most_rows = 1;                                               // of a row of y; of a block
    for (int p = 0; p < job.n_products; ++p) {
        const Product& product = job.product[p];
        sum_bytes = std::max<int64_t>(sum_bytes, int64_t{n_sums} * product.team_warps * 4);
        most_rows = std::max(most_rows, ceil_div(product.n_out, product.n_blocks));
    }
    job.chunk_rows = static_cast<int>(std::min(most_rows, (SHARED_BYTES - job.sums_at) / sum_bytes));
    const size_t shared = static_cast<size_t>(job.sums_at + job.chunk_rows * sum_bytes);
    decode::launch_products<N, TEAM>({"linear_decode", dim3(static_cast<unsigned>(n_blocks)),
                                      dim3(static_cast<unsigned>(n_warps * WARP)), shared, stream, true},
                                     job, mixed);
}

bool suits_few(DType type) {
    bool suits = false;
    with_type(type, [&]<DType T>() { suits = decode::suits_few<T>; });
    return suits;
}

// One row. Few warps with much under way each are faster where they can be, unless too many of them are left idle.
void run_one(Job& job, int64_t n_in, bool mixed, cudaStream_t stream) {
    const int few = busy_warps(job, n_in, decode::max_warps<1, Team::few>);
    const int many = busy_warps(job, n_in, decode::max_warps<1, Team::many>);
    if (!mixed && (!suits_few(job.product[0].dtype) || 4 * many > 5 * few)) {
        run<1, Team::many>(job, n_in, mixed, stream);
    } else {
        run<1, Team::few>(job, n_in, mixed, stream);
    }
}

// Brings the activations into the form that the products take, as far as they do not do it by themselves.
void bring_in(Job& job, const DecodeInput& in, int n, bool quantised, bool floats, const DecodeScratch& scratch,
              cudaStream_t stream) {
    const int n_in = job.a.n_in;
    const int made_bytes = decode::NORM_BYTES + (quantised && !in.quantized ? n_in + n_in / 32 * 4 : 0);
    job.a.x = in.x;
    job.a.quantized = in.quantized;
    job.a.norm = in.norm;
    job.eps = in.eps;
    const bool alone = n == 1 && n_in % 4 == 0 && made_bytes <= SHARED_BYTES - SHARED_SUM_BYTES;
    if (alone || (in.quantized && !floats) || (!quantised && !in.norm)) {
        job.sums_at = alone ? made_bytes : 0;
        return;
    }
    const bool quantise = quantised && !in.quantized;
    if (in.norm) {
        rms_norm(floats ? scratch.x : nullptr, quantise ? scratch.quantized : Quantized{}, in.x, in.norm, n, n_in,
                 in.eps, stream);
        job.a.x = scratch.x;
        job.a.norm = nullptr;
    } else if (quantise) {
        quantize(scratch.quantized, in.x, int64_t{n} * n_in, stream);
    }
    if (quantise) job.a.quantized = scratch.quantized;
}

void run(Job& job, const DecodeInput& in, int64_t n_in, int n, const DecodeScratch& scratch, cudaStream_t stream) {
    if (n < 1 || n > n_decode_max) {
        fail(FASA_ERROR_ARGUMENT, "linear_decode: %d rows; 1 to %d are possible", n, n_decode_max);
    }
    bool quantised = false, floats = false;
    for (int p = 0; p < job.n_products; ++p) (is_float(job.product[p].dtype) ? floats : quantised) = true;
    job.a.n_in = static_cast<int>(n_in);
    job.a.n = n;
    bring_in(job, in, n, quantised, floats, scratch, stream);
    bool mixed = false;
    for (int p = 1; p < job.n_products; ++p) mixed |= job.product[p].dtype != job.product[0].dtype;
    if (n == 1) {
        run_one(job, n_in, mixed, stream);
    } else if (n == 2) {
        run<2, Team::few>(job, n_in, mixed, stream);
    } else {
        run<4, Team::few>(job, n_in, mixed, stream);
    }
}

}  // namespace

DecodeScratch DecodeScratch::take(Arena& arena, int64_t n_in_max) {
    const size_t n = static_cast<size_t>(n_decode_max) * static_cast<size_t>(n_in_max);
    DecodeScratch scratch;
    scratch.quantized = {arena.take<int8_t>(n), arena.take<float>(n / 32)};
    scratch.x = arena.take<float>(n);
    return scratch;
}

void linear_decode(const LinearOut* out, int n_products, const DecodeInput& in, int n, const DecodeScratch& scratch,
                   cudaStream_t stream) {
    for (int first = 0; first < n_products; first += MAX_PRODUCTS) {
        Job job = {};
        job.n_products = std::min(MAX_PRODUCTS, n_products - first);
        for (int p = 0; p < job.n_products; ++p) job.product[p] = product_of(out[first + p]);
        run(job, in, out[0].w.n_in, n, scratch, stream);
    }
}

bool glu_fits(const WeightView& gate, const WeightView& up) {
    return gate.dtype == up.dtype && gate.n_in == up.n_in && gate.n_out == up.n_out;
}

void linear_glu_decode(float* y, const WeightView& gate, const WeightView& up, const DecodeInput& in, int n,
                       const DecodeScratch& scratch, cudaStream_t stream) {
    if (!glu_fits(gate, up)) fail(FASA_ERROR_ARGUMENT, "linear_glu_decode: matrices of two types or shapes");
    Job job = {};
    job.n_products = 1;
    job.glu = true;
    job.product[0] = product_of({gate, nullptr, y, false});
    job.product[0].to_up = static_cast<const uint8_t*>(up.data) - job.product[0].w;
    run(job, in, gate.n_in, n, scratch, stream);
}

}  // namespace fasa::cuda
