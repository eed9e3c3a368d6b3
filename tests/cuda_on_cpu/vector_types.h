// The small vectors of CUDA, aligned as there.
#pragma once

#include <cstddef>
#include <cstdint>

#define ON_CPU_VECTORS(name, T, align1)                                \
    struct name##1 {                                                   \
        T x;                                                           \
    };                                                                 \
    struct alignas(2 * align1) name##2 {                               \
        T x, y;                                                        \
    };                                                                 \
    struct name##3 {                                                   \
        T x, y, z;                                                     \
    };                                                                 \
    struct alignas(4 * align1 < 16 ? 4 * align1 : 16) name##4 {        \
        T x, y, z, w;                                                  \
    };                                                                 \
    inline name##1 make_##name##1(T x) { return {x}; }                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

ON_CPU_VECTORS(char, signed char, 1)
ON_CPU_VECTORS(uchar, unsigned char, 1)
ON_CPU_VECTORS(short, short, 2)
ON_CPU_VECTORS(ushort, unsigned short, 2)
ON_CPU_VECTORS(int, int, 4)
ON_CPU_VECTORS(uint, unsigned, 4)
ON_CPU_VECTORS(float, float, 4)
ON_CPU_VECTORS(longlong, long long, 8)
ON_CPU_VECTORS(ulonglong, unsigned long long, 8)
ON_CPU_VECTORS(double, double, 8)
#undef ON_CPU_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
