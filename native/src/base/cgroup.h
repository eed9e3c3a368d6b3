// What the control groups of this process leave it: containers and job schedulers limit through them.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

namespace fasa {

struct CgroupLimits {
    double cores = std::numeric_limits<double>::infinity();       // CPU quota, in cores
    uint64_t memory_free = std::numeric_limits<uint64_t>::max();  // bytes before the limit; page cache counted as free
};

// Versions 1 and 2, every level up to the root. root replaces "/" in tests.
CgroupLimits cgroup_limits(const std::string& root = "");

}  // namespace fasa
