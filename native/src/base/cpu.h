// The processor this process runs on, and the instruction set the kernels use.
#pragma once

#include <cstdint>
#include <string>

namespace fasa {

enum class Isa { scalar, avx2, avx512 };

struct Processor {
    std::string model;  // "unknown" where the system does not say
    int n_cores;        // usable by this process: affinity and cgroup quota counted in
};

// Looked up at the first call.
const Processor& processor();

// "scalar, avx2, avx512": the instruction sets of this build.
const std::string& built_isas();

// The instruction set in use.
struct CpuInfo {
    Isa isa;
    std::string name;    // "scalar", "avx2", "avx512"
    std::string reason;  // "detected", or "FASA_CPU=avx2"
};

// Decided at the first call. avx2 means AVX2+FMA+F16C, avx512 F+BW+DQ+VL+VNNI. The environment variable
// FASA_CPU=scalar|avx2|avx512 forces one; throws Error(UNSUPPORTED) when that one was not built or cannot run here.
const CpuInfo& cpu_info();

// Bytes that can still be taken without swapping: MemAvailable, or what the cgroup leaves if less.
uint64_t memory_available();

}  // namespace fasa
