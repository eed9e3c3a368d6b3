// Half precision as CUDA has it, on the CPU: results are rounded once, to nearest, ties to even.
#pragma once

#include "base/half.h"
#include "device_functions.h"
#include "vector_types.h"

namespace on_cpu {

// Rounded toward zero, with the last bit set where something was lost: rounding this once more, to a type at least two
// bits shorter, gives what rounding the exact value would.
inline float round_to_odd(double x) {
    const float f = static_cast<float>(x);
    if (static_cast<double>(f) == x || !std::isfinite(f)) return f;
    const uint32_t bits = std::bit_cast<uint32_t>(f);
    return std::bit_cast<float>((std::fabs(f) > std::fabs(x) ? bits - 1 : bits) | 1u);
}

// x y + z for halves. The product is exact in double; the error of the sum is known by Knuth's two-sum.
inline float fused(float x, float y, float z) {
    const double product = static_cast<double>(x) * y, c = z, sum = product + c;
    if (!std::isfinite(sum)) return static_cast<float>(sum);
    const double part = sum - product, error = (product - (sum - part)) + (c - part);
    if (error == 0) return round_to_odd(sum);
    const bool too_large = (error < 0) == (sum > 0);
    const uint64_t bits = std::bit_cast<uint64_t>(sum);
    return round_to_odd(std::bit_cast<double>((too_large ? bits - 1 : bits) | 1u));
}

}  // namespace on_cpu

struct __half_raw {
    unsigned short x;
};

struct alignas(2) __half {
    unsigned short bits;

    __half() = default;
    __half(float x) : bits(fasa::float_to_half(x)) {}
    __half(double x) : bits(fasa::float_to_half(on_cpu::round_to_odd(x))) {}
    __half(int x) : __half(static_cast<double>(x)) {}
    __half(__half_raw raw) : bits(raw.x) {}
    operator float() const { return fasa::half_to_float(bits); }
};

struct alignas(4) __half2 {
    __half x, y;

    __half2() = default;
    __half2(__half a, __half b) : x(a), y(b) {}
};

using half = __half;
using half2 = __half2;

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __double2half(double x) { return x; }
inline __half __int2half_rn(int x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short x) { return __half_raw{x}; }
inline bool __hisnan(__half x) { return (x.bits & 0x7fff) > 0x7c00; }

inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }
inline __half2 __low2half2(__half2 v) { return {v.x, v.x}; }
inline __half2 __high2half2(__half2 v) { return {v.y, v.y}; }
inline __half2 __lows2half2(__half2 a, __half2 b) { return {a.x, b.x}; }
inline __half2 __highs2half2(__half2 a, __half2 b) { return {a.y, b.y}; }

// A float has more than twice the bits of a half, so that rounding twice is rounding once.
inline __half __hadd(__half a, __half b) { return static_cast<float>(a) + static_cast<float>(b); }
inline __half __hsub(__half a, __half b) { return static_cast<float>(a) - static_cast<float>(b); }
inline __half __hmul(__half a, __half b) { return static_cast<float>(a) * static_cast<float>(b); }
inline __half __hdiv(__half a, __half b) { return static_cast<float>(a) / static_cast<float>(b); }
inline __half __hfma(__half a, __half b, __half c) { return on_cpu::fused(a, b, c); }
inline __half __hneg(__half a) { return __ushort_as_half(static_cast<unsigned short>(a.bits ^ 0x8000)); }
inline __half __habs(__half a) { return __ushort_as_half(static_cast<unsigned short>(a.bits & 0x7fff)); }
inline __half __hmax(__half a, __half b) { return std::fmax(static_cast<float>(a), static_cast<float>(b)); }
inline __half __hmin(__half a, __half b) { return std::fmin(static_cast<float>(a), static_cast<float>(b)); }
inline __half __hmax_nan(__half a, __half b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmax(a, b); }
inline __half __hmin_nan(__half a, __half b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmin(a, b); }
inline bool __hgt(__half a, __half b) { return static_cast<float>(a) > static_cast<float>(b); }
inline bool __hlt(__half a, __half b) { return static_cast<float>(a) < static_cast<float>(b); }

inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
inline __half2 __hneg2(__half2 a) { return {__hneg(a.x), __hneg(a.y)}; }
inline __half2 __habs2(__half2 a) { return {__habs(a.x), __habs(a.y)}; }
inline __half2 __hmax2(__half2 a, __half2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
inline __half2 __hmin2(__half2 a, __half2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
inline __half2 __hmax2_nan(__half2 a, __half2 b) { return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)}; }
inline __half2 __hmin2_nan(__half2 a, __half2 b) { return {__hmin_nan(a.x, b.x), __hmin_nan(a.y, b.y)}; }
