// The few instructions that C++ has no name for. Fragments are laid out as the PTX ISA says (mma.m16n8k16,
// mma.m16n8k32, ldmatrix). tests/cuda_on_cpu has the same functions in plain C++.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace fasa::cuda::ptx {

// d[16][8] += a[16][16] b[16][8]: half-precision inputs, float sums.
__device__ inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

#if __CUDA_ARCH__ < 800
// d[8][8] += a[8][16] b[16][8], two values of d a lane.
template <bool unsigned_a>
__device__ inline void mma_i8_small(int32_t& d0, int32_t& d1, uint32_t a, uint32_t b) {
    if constexpr (unsigned_a) {
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                     : "+r"(d0), "+r"(d1)
                     : "r"(a), "r"(b));
    } else {
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                     : "+r"(d0), "+r"(d1)
                     : "r"(a), "r"(b));
    }
}
#endif

// d[16][8] += a[16][32] b[32][8]: bytes, those of a with a sign or without, and exact integer sums.
template <bool unsigned_a>
__device__ inline void mma_i8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    if constexpr (unsigned_a) {
        asm volatile(
            "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#else
    mma_i8_small<unsigned_a>(d[0], d[1], a[0], b[0]);
    mma_i8_small<unsigned_a>(d[2], d[3], a[1], b[0]);
    mma_i8_small<unsigned_a>(d[0], d[1], a[2], b[1]);
    mma_i8_small<unsigned_a>(d[2], d[3], a[3], b[1]);
#endif
}

// Four 8x8 half-precision matrices from shared memory; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void load_matrix(uint32_t (&r)[4], const void* row) {
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// The same, each matrix transposed.
__device__ inline void load_matrix_transposed(uint32_t (&r)[4], const void* row) {
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// 16 bytes from global to shared memory behind the thread's back; both addresses 16-byte aligned. When not valid, zeros
// are written and nothing is read.
__device__ inline void copy_async_16(void* shared, const void* global, bool valid = true) {
#if __CUDA_ARCH__ >= 800
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
#else
    *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
}
// The same of 4 bytes, 4-byte aligned.
__device__ inline void copy_async_4(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at), "l"(global) : "memory");
#else
    *static_cast<uint32_t*>(shared) = *static_cast<const uint32_t*>(global);
#endif
}
// Ends a group of copies.
__device__ inline void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most n groups of this thread are under way.
template <int n>
__device__ inline void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#endif
}

// 16 bytes that are read once and need not stay in the cache; 16-byte aligned, never written by this kernel.
__device__ inline uint4 load_once(const void* global) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(global));
    return v;
}

// The same of 8 bytes, 8-byte aligned.
__device__ inline uint2 load_once_8(const void* global) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(global));
    return v;
}

// Starts bringing n_bytes, more than 0, into the L2 cache. (One instruction could bring any number of bytes, but lanes
// of a warp would wait for each other.)
__device__ inline void prefetch(const void* global, uint32_t n_bytes) {
    const uint8_t* at = static_cast<const uint8_t*>(global);
    for (uint32_t i = 0; i < n_bytes; i += 64) asm volatile("prefetch.global.L2 [%0];" ::"l"(at + i));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at + n_bytes - 1));
}

// The barrier of all threads of a cluster, in two halves. It says that all blocks have come so far and their mailboxes
// are open, nothing of other memory: that would wait for the writes under way. Without clusters (before compute
// capability 9.0) there is nothing to do.
__device__ inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}
__device__ inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// A mailbox (mbarrier) in shared memory counts bytes that blocks of the cluster send to this one. It is opened by one
// thread before that arrives at the cluster's barrier; then for every round one thread says how many bytes are to come,
// and who waits for the round, numbered from 0, sees them. Mail may come before it is expected, but not before all that
// waited for the round before have seen it, and nobody may end before all its mail has come. Compute capability 9.0,
// at least two blocks, and CUDA 12.1 or newer, whose PTX first has what `send` needs.
__device__ inline void open_mailbox(uint64_t* box) {
#if __CUDA_ARCH__ >= 900
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(box));
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ inline void expect_mail(uint64_t* box, uint32_t n_bytes) {
#if __CUDA_ARCH__ >= 900
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(box));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(n_bytes) : "memory");
#endif
}
__device__ inline void wait_for_mail(uint64_t* box, uint32_t round) {
#if __CUDA_ARCH__ >= 900
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(box));
    uint32_t is_here;
    do {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(is_here)
            : "r"(at), "r"(round & 1)
            : "memory");
    } while (!is_here);
#endif
}
#if __CUDA_ARCH__ >= 900
// The address, within the cluster, of the same place in another block's shared memory.
__device__ inline uint32_t in_block(const void* shared, uint32_t rank) {
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(at)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "r"(rank));
    return at;
}
#endif
// Writes 8 or 16 bytes, aligned to their size, to the same place of block `rank`, and lets that block's mailbox know.
__device__ inline void send(uint64_t* to, uint64_t value, uint64_t* box, uint32_t rank) {
#if __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(in_block(to, rank)),
        "l"(value), "r"(in_block(box, rank))
        : "memory");
#endif
}
__device__ inline void send(uint4* to, uint4 value, uint64_t* box, uint32_t rank) {
#if __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(
                     in_block(to, rank)),
                 "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(in_block(box, rank))
                 : "memory");
#endif
}

// Returns when all kernels that this one was started beside are done and their writes are visible.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may start.
__device__ inline void start_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace fasa::cuda::ptx
