#include "base/cpu.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>

#include <memory>
#endif
#if FASA_X86
#include <cpuid.h>
#endif

#include "base/cgroup.h"
#include "base/error.h"

namespace fasa {
namespace {

struct IsaEntry {
    Isa isa;
    const char* name;
    bool runs;  // on this processor, under this operating system
};

#if FASA_X86

bool has_f16c() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 29)) != 0;
}

// __builtin_cpu_supports also asks whether the operating system saves the registers.
bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

std::vector<IsaEntry> isa_entries() {
    return {{Isa::scalar, "scalar", true}, {Isa::avx2, "avx2", runs_avx2()}, {Isa::avx512, "avx512", runs_avx512()}};
}

#else

std::vector<IsaEntry> isa_entries() { return {{Isa::scalar, "scalar", true}}; }

#endif

IsaEntry forced_isa(const std::string& name) {
    for (const IsaEntry& entry : isa_entries()) {
        if (name != entry.name) continue;
        if (!entry.runs) {
            fail(FASA_ERROR_UNSUPPORTED, "FASA_CPU=%s: this processor cannot run it; unset FASA_CPU to detect one",
                 entry.name);
        }
        return entry;
    }
    fail(FASA_ERROR_UNSUPPORTED, "FASA_CPU=%s: not in this build, which has %s", name.substr(0, 40).c_str(),
         built_isas().c_str());
}

IsaEntry best_isa() {
    IsaEntry best = isa_entries().front();
    for (const IsaEntry& entry : isa_entries()) {
        if (entry.runs) best = entry;
    }
    return best;
}

// The value after "name :" in a file of such lines; empty when there is none.
std::string field(const char* path, const std::string& name) {
    std::ifstream file(path);
    std::string line;
    while (std::getline(file, line)) {
        const size_t colon = line.find(':');
        if (line.rfind(name, 0) != 0 || colon == std::string::npos) continue;
        const size_t start = line.find_first_not_of(" \t", colon + 1);
        return start == std::string::npos ? "" : line.substr(start);
    }
    return "";
}

// Processors that the scheduler may give this process.
int affinity_cores() {
#if defined(__linux__)
    for (int n = 1024; n <= (1 << 20); n *= 2) {  // the kernel refuses a set smaller than its own
        const size_t bytes = CPU_ALLOC_SIZE(n);
        const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(n), [](cpu_set_t* s) { CPU_FREE(s); });
        if (!set) break;
        if (sched_getaffinity(0, bytes, set.get()) == 0) return CPU_COUNT_S(bytes, set.get());
    }
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
}

int usable_cores() {
    const double quota = std::ceil(cgroup_limits().cores);
    return static_cast<int>(std::max(1.0, std::min(quota, static_cast<double>(affinity_cores()))));
}

Processor find_processor() {
    const std::string model = field("/proc/cpuinfo", "model name");
    return {model.empty() ? "unknown" : model, usable_cores()};
}

CpuInfo choose_isa() {
    const char* forced = std::getenv("FASA_CPU");
    const bool force = forced && *forced;
    const IsaEntry entry = force ? forced_isa(forced) : best_isa();
    return {entry.isa, entry.name, force ? "FASA_CPU=" + std::string(forced) : "detected"};
}

}  // namespace

const Processor& processor() {
    static const Processor found = find_processor();
    return found;
}

const std::string& built_isas() {
    static const std::string names = [] {
        std::string text;
        for (const IsaEntry& entry : isa_entries()) text += (text.empty() ? "" : ", ") + std::string(entry.name);
        return text;
    }();
    return names;
}

const CpuInfo& cpu_info() {
    static const CpuInfo info = choose_isa();
    return info;
}

uint64_t memory_available() {
    uint64_t available = std::strtoull(field("/proc/meminfo", "MemAvailable").c_str(), nullptr, 10) * 1024;
    if (available == 0) {
        const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
        available = pages > 0 && page > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page)
                                          : std::numeric_limits<uint64_t>::max();
    }
    return std::min(available, cgroup_limits().memory_free);
}

}  // namespace fasa
