// The place of native/src/backend/cuda/ptx.cuh: the same functions, fragments laid out as the PTX ISA says.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "block.h"

namespace fasa::cuda::ptx {

struct Fragments {
    float* d;
    const uint32_t *a, *b;
};

// One of the two halves in a register.
inline float half_of(uint32_t pair, int i) { return half_to_float(static_cast<uint16_t>(pair >> 16 * i)); }

inline void all_lanes(const on_cpu::Slots& slots, const char* what) {
    for (const void* slot : slots) {
        if (!slot) on_cpu::fault("%s needs all 32 lanes", what);
    }
}

// Register i of lane 4 g + t holds: d[g + 8 (i / 2)][2 t + i % 2]; a[g + 8 (i % 2)][2 t + 8 (i / 2) + 0, 1];
// b[2 t + 8 i + 0, 1][g].
inline void mma_all(on_cpu::Slots& slots) {
    all_lanes(slots, "mma");
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const Fragments& f = *static_cast<Fragments*>(slots[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) {
            for (int h = 0; h < 2; ++h) a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + h] = half_of(f.a[i], h);
        }
        for (int i = 0; i < 2; ++i) {
            for (int h = 0; h < 2; ++h) b[2 * t + 8 * i + h][g] = half_of(f.b[i], h);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* d = static_cast<Fragments*>(slots[lane])->d;
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            double sum = d[i];
            for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
            d[i] = static_cast<float>(sum);
        }
    }
}

inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ON_CPU_CALLER) {
    Fragments mine{d, a, b};
    on_cpu::meet({"mma_f16", file, line}, ~0u, &mine, mma_all);
}

struct ByteFragments {
    int32_t* d;
    const uint32_t *a, *b;
};

// Register i of lane 4 g + t holds: d[g + 8 (i / 2)][2 t + i % 2]; a[g + 8 (i % 2)][4 t + 16 (i / 2) + 0 .. 3];
// b[4 t + 16 i + 0 .. 3][g].
template <bool unsigned_a>
void mma_i8_all(on_cpu::Slots& slots) {
    all_lanes(slots, "mma");
    int a[16][32], b[32][8];
    for (int lane = 0; lane < 32; ++lane) {
        const ByteFragments& f = *static_cast<ByteFragments*>(slots[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) {
            for (int k = 0; k < 4; ++k) {
                const auto byte = static_cast<uint8_t>(f.a[i] >> 8 * k);
                a[g + 8 * (i % 2)][4 * t + 16 * (i / 2) + k] = unsigned_a ? byte : static_cast<int8_t>(byte);
            }
        }
        for (int i = 0; i < 2; ++i) {
            for (int k = 0; k < 4; ++k) b[4 * t + 16 * i + k][g] = static_cast<int8_t>(f.b[i] >> 8 * k);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        const ByteFragments& f = *static_cast<ByteFragments*>(slots[lane]);
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            for (int k = 0; k < 32; ++k) f.d[i] += a[row][k] * b[k][column];
        }
    }
}

template <bool unsigned_a>
inline void mma_i8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ON_CPU_CALLER) {
    ByteFragments mine{d, a, b};
    on_cpu::meet({"mma_i8", file, line}, ~0u, &mine, mma_i8_all<unsigned_a>);
}

struct MatrixRows {
    uint32_t* r;
    const void* row;
};

// Register m of lane 4 g + t holds elements 2 t, 2 t + 1 of row g of matrix m; transposed, of column g.
template <bool transposed>
void load_all(on_cpu::Slots& slots) {
    all_lanes(slots, "ldmatrix");
    for (int m = 0; m < 4; ++m) {
        uint16_t matrix[8][8];
        for (int row = 0; row < 8; ++row) {
            const void* from = static_cast<MatrixRows*>(slots[8 * m + row])->row;
            if (reinterpret_cast<uintptr_t>(from) % 16 != 0) on_cpu::fault("ldmatrix: a row is not 16-byte aligned");
            std::memcpy(matrix[row], from, 16);
        }
        for (int lane = 0; lane < 32; ++lane) {
            const int g = lane / 4, t = 2 * (lane % 4);
            const uint16_t low = transposed ? matrix[t][g] : matrix[g][t];
            const uint16_t high = transposed ? matrix[t + 1][g] : matrix[g][t + 1];
            static_cast<MatrixRows*>(slots[lane])->r[m] = low | uint32_t{high} << 16;
        }
    }
}

inline void load_matrix(uint32_t (&r)[4], const void* row, ON_CPU_CALLER) {
    MatrixRows mine{r, row};
    on_cpu::meet({"load_matrix", file, line}, ~0u, &mine, load_all<false>);
}

inline void load_matrix_transposed(uint32_t (&r)[4], const void* row, ON_CPU_CALLER) {
    MatrixRows mine{r, row};
    on_cpu::meet({"load_matrix_transposed", file, line}, ~0u, &mine, load_all<true>);
}

// The copy takes place in the wait; until then the destination holds ones (as half or float: NaN).
inline void copy_async_16(void* shared, const void* global, bool valid = true) {
    const auto bits = reinterpret_cast<uintptr_t>(shared) | (valid ? reinterpret_cast<uintptr_t>(global) : 0);
    if (bits % 16 != 0) on_cpu::fault("copy_async_16: an address is not 16-byte aligned");
    std::memset(shared, 0xff, 16);
    on_cpu::running->copies.back().push_back({shared, valid ? global : nullptr, 16});
}
inline void copy_async_4(void* shared, const void* global) {
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 4 != 0) {
        on_cpu::fault("copy_async_4: an address is not 4-byte aligned");
    }
    std::memset(shared, 0xff, 4);
    on_cpu::running->copies.back().push_back({shared, global, 4});
}
inline void copy_async_commit() { on_cpu::running->copies.emplace_back(); }
template <int n>
inline void copy_async_wait() {
    auto& groups = on_cpu::running->copies;
    while (groups.size() > n + 1) {  // the last one is still open
        for (const auto& [to, from, n_bytes] : groups.front()) {
            from ? std::memcpy(to, from, n_bytes) : std::memset(to, 0, n_bytes);
        }
        groups.erase(groups.begin());
    }
}

inline uint4 load_once(const void* global) {
    if (reinterpret_cast<uintptr_t>(global) % 16 != 0) on_cpu::fault("load_once: the address is not 16-byte aligned");
    return *static_cast<const uint4*>(global);
}

inline uint2 load_once_8(const void* global) {
    if (reinterpret_cast<uintptr_t>(global) % 8 != 0) on_cpu::fault("load_once_8: the address is not 8-byte aligned");
    return *static_cast<const uint2*>(global);
}

inline void prefetch(const void* global, uint32_t n_bytes) {
    const volatile uint8_t* at = static_cast<const uint8_t*>(global);
    at[0], at[n_bytes - 1];
}

inline void cluster_arrive(ON_CPU_CALLER) { on_cpu::cluster_arrive({"cluster_arrive", file, line}); }
inline void cluster_wait(ON_CPU_CALLER) { on_cpu::cluster_wait({"cluster_wait", file, line}); }

// What is in a mailbox's word.
struct Mailbox {
    int32_t n_missing;  // bytes: expected ones that have not come, less those that came before they were expected
    uint8_t is_expecting, is_open;
    uint16_t round;
};
inline Mailbox& mailbox(uint64_t* box) {
    Mailbox& m = *reinterpret_cast<Mailbox*>(box);
    if (m.is_open != 1) on_cpu::fault("a mailbox that is not open");
    return m;
}
inline void end_round(Mailbox& m) {
    if (!m.is_expecting) return;
    if (m.n_missing < 0) on_cpu::fault("a mailbox has got %d bytes more than it expects", -m.n_missing);
    if (m.n_missing == 0) m = {0, 0, 1, static_cast<uint16_t>(m.round + 1)};
}
inline void open_mailbox(uint64_t* box) { *reinterpret_cast<Mailbox*>(box) = {0, 0, 1, 0}; }
inline void expect_mail(uint64_t* box, uint32_t n_bytes) {
    Mailbox& m = mailbox(box);
    if (m.is_expecting) on_cpu::fault("expect_mail: the round before has not ended");
    m.is_expecting = 1;
    m.n_missing += static_cast<int32_t>(n_bytes);
    end_round(m);
}
inline void wait_for_mail(uint64_t* box, uint32_t round) {
    // Of the round, only whether it is odd counts.
    on_cpu::wait_until("wait_for_mail", [=] { return (mailbox(box).round & 1u) != (round & 1u); });
}
template <class T>
void send(T* to, T value, uint64_t* box, uint32_t rank) {
    if (reinterpret_cast<uintptr_t>(to) % sizeof(T) != 0) on_cpu::fault("send: the address is not aligned");
    T* const there = static_cast<T*>(on_cpu::in_shared_of(to, rank));
    uint64_t* const box_there = static_cast<uint64_t*>(on_cpu::in_shared_of(box, rank));
    mailbox(box_there);
    on_cpu::send(rank, [=] {
        *there = value;
        Mailbox& m = mailbox(box_there);
        m.n_missing -= static_cast<int32_t>(sizeof(T));
        end_round(m);
    });
}

inline void wait_for_previous() { on_cpu::block.waited_for_previous = true; }
inline void start_next() {}

}  // namespace fasa::cuda::ptx
