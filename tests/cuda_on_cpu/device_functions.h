// What a kernel may call, in plain C++. Every thread runs until it meets the others of its block or warp (block.h).
#pragma once

#include <algorithm>
#include <bit>
#include <climits>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __shared__ static thread_local
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define threadIdx (::on_cpu::running->index)
#define blockIdx (::on_cpu::block.index)
#define blockDim (::on_cpu::block.dim)
#define gridDim (::on_cpu::block.grid_dim)
inline constexpr int warpSize = on_cpu::WARP;

// ---- barriers and warps -------------------------------------------------------------------------------------------

// Where a function that all must reach was called.
#define ON_CPU_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(ON_CPU_CALLER) { on_cpu::barrier({"__syncthreads", file, line}, 0); }
inline int __syncthreads_or(int vote, ON_CPU_CALLER) {
    return on_cpu::barrier({"__syncthreads_or", file, line}, vote != 0) > 0;
}
inline int __syncthreads_count(int vote, ON_CPU_CALLER) {
    return on_cpu::barrier({"__syncthreads_count", file, line}, vote != 0);
}
inline int __syncthreads_and(int vote, ON_CPU_CALLER) {
    return on_cpu::barrier({"__syncthreads_and", file, line}, vote == 0) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, ON_CPU_CALLER) {
    on_cpu::meet({"__syncwarp", file, line}, mask, &mask, [](on_cpu::Slots&) {});
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

namespace on_cpu {

template <class T>
struct Shuffled {
    T value, result;
    int from;  // lane
};

// A value asked of a lane that takes no part is made of ones: as a float, NaN.
template <class T>
T shuffle(Site site, unsigned mask, T value, int from) {
    Shuffled<T> mine{value, value, from};
    meet(site, mask, &mine, [](Slots& slots) {
        for (void* slot : slots) {
            auto* asking = static_cast<Shuffled<T>*>(slot);
            if (!asking) continue;
            const auto* asked = static_cast<const Shuffled<T>*>(slots[asking->from]);
            if (asked) {
                asking->result = asked->value;
            } else {
                std::memset(static_cast<void*>(&asking->result), 0xff, sizeof(T));
            }
        }
    });
    return mine.result;
}

// The lane to ask within segments of `width` lanes; the own one where `from` lies outside.
inline int lane_in_segment(int from, int width) {
    const int lane = running->lane();
    return from / width == lane / width && from >= 0 ? from : lane;
}

struct Vote {
    unsigned votes;
};

inline unsigned ballot(Site site, unsigned mask, bool vote) {
    Vote mine{vote};
    meet(site, mask, &mine, [](Slots& slots) {
        unsigned votes = 0;
        for (int lane = 0; lane < WARP; ++lane) {
            if (slots[lane]) votes |= static_cast<Vote*>(slots[lane])->votes << lane;
        }
        for (void* slot : slots) {
            if (slot) static_cast<Vote*>(slot)->votes = votes;
        }
    });
    return mine.votes;
}

}  // namespace on_cpu

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, ON_CPU_CALLER) {
    const int segment = on_cpu::running->lane() / width * width;
    return on_cpu::shuffle({"__shfl_sync", file, line}, mask, value, segment + (from & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, ON_CPU_CALLER) {
    const int lane = on_cpu::running->lane(), from = lane ^ lane_mask;
    // Lanes of an earlier segment may be read, those of a later one not.
    return on_cpu::shuffle({"__shfl_xor_sync", file, line}, mask, value,
                           from < lane / width * width + width ? from : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, ON_CPU_CALLER) {
    const int from = on_cpu::running->lane() + static_cast<int>(delta);
    return on_cpu::shuffle({"__shfl_down_sync", file, line}, mask, value, on_cpu::lane_in_segment(from, width));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, ON_CPU_CALLER) {
    const int from = on_cpu::running->lane() - static_cast<int>(delta);
    return on_cpu::shuffle({"__shfl_up_sync", file, line}, mask, value, on_cpu::lane_in_segment(from, width));
}
inline unsigned __ballot_sync(unsigned mask, int vote, ON_CPU_CALLER) {
    return on_cpu::ballot({"__ballot_sync", file, line}, mask, vote != 0);
}
inline int __any_sync(unsigned mask, int vote, ON_CPU_CALLER) {
    return on_cpu::ballot({"__any_sync", file, line}, mask, vote != 0) != 0;
}
inline int __all_sync(unsigned mask, int vote, ON_CPU_CALLER) {
    return on_cpu::ballot({"__all_sync", file, line}, mask, vote == 0) == 0;
}

// ---- memory: one thread runs at a time, so plain accesses are atomic -----------------------------------------------

template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T __ldcs(const T* p) {
    return *p;
}
template <class T>
T __ldcg(const T* p) {
    return *p;
}
template <class T>
void __stcs(T* p, T value) {
    *p = value;
}
template <class T>
void __stcg(T* p, T value) {
    *p = value;
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value) {
    return std::exchange(*p, value);
}
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
    return std::exchange(*p, static_cast<T>(*p + value));
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> value) {
    return std::exchange(*p, static_cast<T>(*p - value));
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> value) {
    return std::exchange(*p, std::max(*p, value));
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> value) {
    return std::exchange(*p, std::min(*p, value));
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> value) {
    return std::exchange(*p, *p | value);
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> value) {
    return std::exchange(*p, *p & value);
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    return std::exchange(*p, *p == expected ? value : *p);
}
inline unsigned atomicInc(unsigned* p, unsigned last) { return std::exchange(*p, *p >= last ? 0 : *p + 1); }

// ---- integers ------------------------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }

namespace on_cpu {

// Four bytes of x and y, each pair through f.
template <class T, class F>
unsigned by_bytes(unsigned x, unsigned y, F f) {
    unsigned result = 0;
    for (int shift = 0; shift < 32; shift += 8) {
        result |= (static_cast<unsigned>(f(int{static_cast<T>(x >> shift)}, int{static_cast<T>(y >> shift)})) & 0xffu)
                  << shift;
    }
    return result;
}

}  // namespace on_cpu

// Byte i of the result is byte selector[i] of the eight bytes y:x; with the selector's top bit, its sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned choice = selector >> 4 * i & 0xf;
        unsigned byte = static_cast<unsigned>(both >> 8 * (choice & 7)) & 0xff;
        if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline unsigned __vadd4(unsigned x, unsigned y) {
    return on_cpu::by_bytes<uint8_t>(x, y, [](int a, int b) { return a + b; });
}
inline unsigned __vsub4(unsigned x, unsigned y) {
    return on_cpu::by_bytes<uint8_t>(x, y, [](int a, int b) { return a - b; });
}
inline unsigned __vsubss4(unsigned x, unsigned y) {
    return on_cpu::by_bytes<int8_t>(x, y, [](int a, int b) { return std::clamp(a - b, -128, 127); });
}
inline int __dp4a(int x, int y, int sum) {
    for (int shift = 0; shift < 32; shift += 8) {
        sum += int{static_cast<int8_t>(x >> shift)} * int{static_cast<int8_t>(y >> shift)};
    }
    return sum;
}
inline unsigned __dp4a(unsigned x, unsigned y, unsigned sum) {
    for (int shift = 0; shift < 32; shift += 8) sum += (x >> shift & 0xff) * (y >> shift & 0xff);
    return sum;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}

// ---- numbers -------------------------------------------------------------------------------------------------------

inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline int __float2int_rn(float x) {  // out of range: the nearest int; NaN: 0
    if (x >= 0x1p31f) return INT_MAX;
    return x >= -0x1p31f ? static_cast<int>(std::nearbyint(x)) : (x < 0 ? INT_MIN : 0);
}
namespace on_cpu {
inline float reciprocal_root(float x) { return 1.0f / std::sqrt(x); }
}  // namespace on_cpu
#define rsqrtf(x) ::on_cpu::reciprocal_root(x)  // newer C libraries have a function of this name
inline float __expf(float x) { return std::exp(x); }
inline float __exp2f(float x) { return std::exp2(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }

// As CUDA's: a NaN loses against a number.
template <class A, class B>
requires(std::is_arithmetic_v<A>&& std::is_arithmetic_v<B>) constexpr auto min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) {
        return std::fmin(static_cast<T>(a), static_cast<T>(b));
    } else {
        return std::min(static_cast<T>(a), static_cast<T>(b));
    }
}
template <class A, class B>
requires(std::is_arithmetic_v<A>&& std::is_arithmetic_v<B>) constexpr auto max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) {
        return std::fmax(static_cast<T>(a), static_cast<T>(b));
    } else {
        return std::max(static_cast<T>(a), static_cast<T>(b));
    }
}
