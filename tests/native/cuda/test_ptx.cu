// What all kernels are built from: barriers, shuffles, tensor-core fragments, asynchronous copies, half precision.
// These hold on a GPU, and so does what tests/cuda_on_cpu puts in their place.
#include <cmath>
#include <random>
#include <vector>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "base/half.h"
#include "check.h"
#include "device_array.h"

namespace fasa::cuda {
namespace {

using test::DeviceArray;

// Half-precision values, small enough that sums of 16 products are exact in float.
std::vector<uint16_t> random_halves(size_t n, uint32_t seed) {
    std::mt19937 rng(seed);
    std::vector<uint16_t> x(n);
    for (uint16_t& value : x) value = float_to_half(static_cast<float>(static_cast<int>(rng() % 65) - 32) / 8);
    return x;
}

__global__ void reverse_kernel(int* x, int n) {
    __shared__ int copy[160];
    copy[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = copy[n - 1 - threadIdx.x];
    const int odd = __syncthreads_or(threadIdx.x == 33) ? 1000 : 0;
    x[threadIdx.x] += odd + 10000 * __syncthreads_count(threadIdx.x < 5);
}

TEST(cuda_barriers) {
    const int n = 150;  // the last warp is short
    std::vector<int> x(n);
    for (int i = 0; i < n; ++i) x[i] = i;
    DeviceArray<int> d(x);
    launch({"reverse", 1, n}, reverse_kernel, d.data(), n);
    x = d.host();
    for (int i = 0; i < n; ++i) CHECK(x[i] == n - 1 - i + 51000);
}

__global__ void shuffle_kernel(float* sum, int* from, unsigned* votes) {
    const int lane = threadIdx.x;
    float x = static_cast<float>(1 << lane % 16);
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    sum[lane] = x;
    from[lane] = __shfl_sync(~0u, lane, 5, 8);
    from[32 + lane] = __shfl_down_sync(~0u, lane, 3);
    from[64 + lane] = __shfl_up_sync(~0u, lane, 2, 16);
    votes[lane] = __ballot_sync(~0u, lane % 3 == 0);
    if (lane >= 8) votes[32 + lane] = __any_sync(~0xffu, lane == 9) + 2u * __any_sync(~0xffu, lane == 3);
}

TEST(cuda_shuffles) {
    DeviceArray<float> sum(32);
    DeviceArray<int> from(96);
    DeviceArray<unsigned> votes(64);
    launch({"shuffle", 1, 32}, shuffle_kernel, sum.data(), from.data(), votes.data());
    const std::vector<float> s = sum.host();
    const std::vector<int> f = from.host();
    const std::vector<unsigned> v = votes.host();
    for (int lane = 0; lane < 32; ++lane) {
        CHECK(s[lane] == 2.0f * 65535);
        CHECK(f[lane] == lane / 8 * 8 + 5);
        CHECK(f[32 + lane] == (lane + 3 < 32 ? lane + 3 : lane));
        CHECK(f[64 + lane] == (lane % 16 >= 2 ? lane - 2 : lane));
        CHECK(v[lane] == 0x49249249u);
        if (lane >= 8) CHECK(v[32 + lane] == 1);
    }
}

// y = a b (+ y): a [16][16], b [16][8] rows, y [16][8]. b's fragment is that of its transpose: load_matrix_transposed.
__global__ void product_kernel(float* y, const uint16_t* a, const uint16_t* b) {
    __shared__ __align__(16) uint16_t tile_a[16 * 16], tile_b[16 * 8];
    const int lane = threadIdx.x;
    ptx::copy_async_16(tile_a + 8 * lane, a + 8 * lane);
    if (lane < 16) ptx::copy_async_16(tile_b + 8 * lane, b + 8 * lane);
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    __syncthreads();
    uint32_t fragment_a[4], both[4];
    ptx::load_matrix(fragment_a, tile_a + lane % 16 * 16 + lane / 16 * 8);
    ptx::load_matrix_transposed(both, tile_b + lane % 16 * 8);
    const uint32_t fragment_b[2] = {both[0], both[1]};
    const int row = lane / 4, column = lane % 4 * 2;
    float d[4] = {y[8 * row + column], y[8 * row + column + 1], y[8 * row + 64 + column], y[8 * row + 65 + column]};
    ptx::mma_f16(d, fragment_a, fragment_b);
    y[8 * row + column] = d[0];
    y[8 * row + column + 1] = d[1];
    y[8 * row + 64 + column] = d[2];
    y[8 * row + 65 + column] = d[3];
}

TEST(cuda_mma) {
    const std::vector<uint16_t> a = random_halves(16 * 16, 1), b = random_halves(16 * 8, 2);
    std::vector<float> y(16 * 8);
    for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<float>(i);
    DeviceArray<uint16_t> on_device_a(a), on_device_b(b);
    DeviceArray<float> on_device_y(y);
    launch({"product", 1, 32}, product_kernel, on_device_y.data(), on_device_a.data(), on_device_b.data());
    const std::vector<float> found = on_device_y.host();
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 8; ++j) {
            float sum = y[8 * i + j];
            for (int k = 0; k < 16; ++k) sum += half_to_float(a[16 * i + k]) * half_to_float(b[8 * k + j]);
            CHECK(found[8 * i + j] == sum);
        }
    }
}

// y += a b: bytes a [16][32], b [8][32] (columns one behind the other), y [16][8].
template <bool unsigned_a>
__global__ void byte_product_kernel(int32_t* y, const uint32_t* a, const uint32_t* b) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    const uint32_t fragment_a[4] = {a[8 * g + t], a[8 * (g + 8) + t], a[8 * g + 4 + t], a[8 * (g + 8) + 4 + t]};
    const uint32_t fragment_b[2] = {b[8 * g + t], b[8 * g + 4 + t]};
    int32_t* at = y + 8 * g + 2 * t;
    int32_t d[4] = {at[0], at[1], at[64], at[65]};
    ptx::mma_i8<unsigned_a>(d, fragment_a, fragment_b);
    at[0] = d[0];
    at[1] = d[1];
    at[64] = d[2];
    at[65] = d[3];
}

TEST(cuda_mma_of_bytes) {
    std::mt19937 rng(5);
    std::vector<uint32_t> a(16 * 8), b(8 * 8);
    for (uint32_t& word : a) word = static_cast<uint32_t>(rng());
    for (uint32_t& word : b) word = static_cast<uint32_t>(rng());
    const auto byte = [](const std::vector<uint32_t>& words, int i) {
        return static_cast<uint8_t>(words[i / 4] >> i % 4 * 8);
    };
    std::vector<int32_t> y(16 * 8);
    for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<int32_t>(i * 1000) - 60000;
    for (const bool has_sign : {true, false}) {
        DeviceArray<uint32_t> on_device_a(a), on_device_b(b);
        DeviceArray<int32_t> on_device_y(y);
        launch({"byte_product", 1, 32}, has_sign ? byte_product_kernel<false> : byte_product_kernel<true>,
               on_device_y.data(), on_device_a.data(), on_device_b.data());
        const std::vector<int32_t> found = on_device_y.host();
        for (int i = 0; i < 16; ++i) {
            for (int j = 0; j < 8; ++j) {
                int32_t sum = y[8 * i + j];
                for (int k = 0; k < 32; ++k) {
                    const int x = has_sign ? static_cast<int8_t>(byte(a, 32 * i + k)) : byte(a, 32 * i + k);
                    sum += x * static_cast<int8_t>(byte(b, 32 * j + k));
                }
                CHECK(found[8 * i + j] == sum);
            }
        }
    }
}

// Sums x [n][32 * 4] over n in stages of shared memory, three groups of copies under way.
__global__ void stages_kernel(float* sum, const float* x, int n) {
    FASA_DYNAMIC_SHARED(shared);
    float4* stage = reinterpret_cast<float4*>(shared);  // [4][32]
    const int lane = threadIdx.x;
    const auto fetch = [&](int i) {
        ptx::copy_async_16(&stage[i % 4 * 32 + lane], x + (int64_t{i} * 32 + lane) * 4, i < n);
        ptx::copy_async_commit();
    };
    for (int i = 0; i < 3; ++i) fetch(i);
    float4 total = {0, 0, 0, 0};
    for (int i = 0; i < n; ++i) {
        ptx::copy_async_wait<2>();
        __syncwarp();
        const float4 v = stage[i % 4 * 32 + 31 - lane];
        total = {total.x + v.x, total.y + v.y, total.z + v.z, total.w + v.w};
        fetch(i + 3);
    }
    reinterpret_cast<float4*>(sum)[lane] = total;
}

TEST(cuda_asynchronous_copies) {
    const int n = 9;
    std::vector<float> x(n * 128), expected(128);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 100);
    for (size_t i = 0; i < x.size(); ++i) expected[(31 - i % 128 / 4) * 4 + i % 4] += x[i];
    DeviceArray<float> on_device(x), sum(128);
    launch({"stages", 1, 32, 4 * 32 * 16}, stages_kernel, sum.data(), on_device.data(), n);
    CHECK(sum.host() == expected);
}

// The odd words of x [64], backward, by copies of 4 bytes.
__global__ void words_kernel(uint32_t* y, const uint32_t* x) {
    __shared__ uint32_t word[32];
    const int lane = threadIdx.x;
    ptx::copy_async_4(word + 31 - lane, x + 2 * lane + 1);
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    __syncwarp();
    y[lane] = word[lane];
}

TEST(cuda_asynchronous_copies_of_words) {
    std::vector<uint32_t> x(64), expected(32);
    for (uint32_t i = 0; i < 64; ++i) x[i] = i * 1000003;
    for (int i = 0; i < 32; ++i) expected[i] = x[63 - 2 * i];
    DeviceArray<uint32_t> on_device(x), y(32);
    launch({"words", 1, 32}, words_kernel, y.data(), on_device.data());
    CHECK(y.host() == expected);
}

__global__ void halves_kernel(uint16_t* rounded, const float* x, uint16_t* fused, const uint16_t* h, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    rounded[i] = __half_as_ushort(__float2half_rn(x[i]));
    const __half2 a = __halves2half2(__ushort_as_half(h[i]), __ushort_as_half(h[n - 1 - i]));
    const __half2 product = __hfma2(a, a, __float2half2_rn(6.1035156e-05f));
    fused[i] = __half_as_ushort(__low2half(product));
}

TEST(cuda_halves) {
    const int n = 4096;
    std::mt19937 rng(3);
    std::vector<float> x(n);
    std::vector<uint16_t> h(n);
    for (float& value : x) value = std::ldexp(static_cast<float>(rng()) - 0x1p31f, static_cast<int>(rng() % 46) - 58);
    for (uint16_t& value : h) value = static_cast<uint16_t>(rng() % 0x7c00);
    x[0] = 65519.9f, x[1] = 65520.0f, x[2] = 0x1p-25f, x[3] = 0x1.8p-24f, x[4] = -0.0f, x[5] = INFINITY;
    DeviceArray<float> on_device_x(x);
    DeviceArray<uint16_t> on_device_h(h), rounded(n), fused(n);
    launch({"halves", n / 128, 128}, halves_kernel, rounded.data(), on_device_x.data(), fused.data(),
           on_device_h.data(), n);
    const std::vector<uint16_t> r = rounded.host(), f = fused.host();
    for (int i = 0; i < n; ++i) {
        CHECK(r[i] == float_to_half(x[i]));
        // The square and the sum are exact in long double, and its way to half through float is harmless unless float
        // lands halfway between two halves.
        const float a = half_to_float(h[i]);
        const long double exact = static_cast<long double>(a) * a + 0x1p-14L;
        const float once = static_cast<float>(exact);
        const bool halfway = (std::bit_cast<uint32_t>(once) & 0x1fff) == 0x1000;
        if (!halfway) CHECK(f[i] == float_to_half(once));
    }
}

// In every round each block sends each block (itself too) a wide letter a thread, and a narrow one; boxes take turns.
struct Post {
    uint4 wide[2][max_cluster][64];
    uint64_t narrow[2][max_cluster], box[2];
};
__global__ void mail_kernel(unsigned* n_wrong, int n_round) {
    FASA_DYNAMIC_SHARED(shared);
    Post& post = *reinterpret_cast<Post*>(shared);
    const unsigned rank = blockIdx.x, n_block = gridDim.x, thread = threadIdx.x;
    if (thread == 0) {
        for (uint64_t& box : post.box) ptx::open_mailbox(&box);
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
    unsigned wrong = 0;
    for (unsigned round = 0; round < static_cast<unsigned>(n_round); ++round) {
        const unsigned turn = round % 2;
        uint64_t* box = &post.box[turn];
        if (thread == 0) ptx::expect_mail(box, n_block * (64 * sizeof(uint4) + sizeof(uint64_t)));
        for (unsigned to = 0; to < n_block; ++to) {
            ptx::send(&post.wide[turn][rank][thread], make_uint4(rank, thread, round, to), box, to);
        }
        if (thread < n_block) ptx::send(&post.narrow[turn][rank], uint64_t{rank} << 32 | round, box, thread);
        ptx::wait_for_mail(box, round / 2);
        for (unsigned from = 0; from < n_block; ++from) {
            const uint4 letter = post.wide[turn][from][thread ^ 1];
            wrong += letter.x != from || letter.y != (thread ^ 1) || letter.z != round || letter.w != rank;
            wrong += post.narrow[turn][from] != (uint64_t{from} << 32 | round);
        }
        __syncthreads();  // all have read what the others send over in the next round but one
    }
    atomicAdd(n_wrong, wrong);
}

TEST(cuda_mail_between_blocks) {
    DeviceArray<unsigned> n_wrong(std::vector<unsigned>{0});
    allow_shared(mail_kernel, sizeof(Post), "mail");
    for (unsigned wanted = 2; wanted <= max_cluster; wanted *= 2) {
        const unsigned n_block = largest_cluster(mail_kernel, 1, dim3(64), sizeof(Post), wanted);
        if (n_block < 2) return;  // built for GPUs without clusters
        launch({.name = "mail",
                .grid = dim3(n_block),
                .block = dim3(64),
                .shared_bytes = sizeof(Post),
                .cluster = n_block},
               mail_kernel, n_wrong.data(), 9);
        CHECK(n_wrong.host()[0] == 0);
    }
}

}  // namespace
}  // namespace fasa::cuda
