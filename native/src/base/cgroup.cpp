#include "base/cgroup.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

namespace fasa {
namespace {

// The first number in a file; nothing when there is none ("max" in version 2, a missing file).
std::optional<int64_t> read_number(const std::string& path) {
    int64_t value;
    if (std::ifstream(path) >> value) return value;
    return {};
}

// Bytes of page cache in a memory.stat: the kernel gives them back before it refuses memory.
int64_t page_cache(const std::string& path, const std::string& prefix) {
    std::ifstream stat(path);
    std::string name;
    int64_t value, sum = 0;
    while (stat >> name >> value) {
        if (name == prefix + "active_file" || name == prefix + "inactive_file") sum += value;
    }
    return sum;
}

void limit_cores(CgroupLimits& limits, std::optional<int64_t> quota, std::optional<int64_t> period) {
    if (!quota || !period || *quota <= 0 || *period <= 0) return;  // -1: no quota
    limits.cores = std::min(limits.cores, static_cast<double>(*quota) / static_cast<double>(*period));
}

void limit_memory(CgroupLimits& limits, std::optional<int64_t> limit, std::optional<int64_t> used, int64_t cache) {
    if (!limit || !used || *limit < 0) return;
    const int64_t held = std::max<int64_t>(0, *used - cache);
    limits.memory_free = std::min(limits.memory_free, static_cast<uint64_t>(std::max<int64_t>(0, *limit - held)));
}

void read_v2(CgroupLimits& limits, const std::string& dir) {
    std::ifstream cpu_max(dir + "/cpu.max");  // "200000 100000" or "max 100000"
    int64_t quota, period;
    if (cpu_max >> quota >> period) limit_cores(limits, quota, period);
    limit_memory(limits, read_number(dir + "/memory.max"), read_number(dir + "/memory.current"),
                 page_cache(dir + "/memory.stat", ""));
}

void read_v1_cpu(CgroupLimits& limits, const std::string& dir) {
    limit_cores(limits, read_number(dir + "/cpu.cfs_quota_us"), read_number(dir + "/cpu.cfs_period_us"));
}

void read_v1_memory(CgroupLimits& limits, const std::string& dir) {
    limit_memory(limits, read_number(dir + "/memory.limit_in_bytes"), read_number(dir + "/memory.usage_in_bytes"),
                 page_cache(dir + "/memory.stat", "total_"));
}

// A group and all that contain it, up to the mount: inside a container the mount may already be the group itself, so
// levels that are not there are passed over.
template <class Read>
void for_each_level(CgroupLimits& limits, const std::string& mount, std::string group, Read read) {
    for (;;) {
        read(limits, mount + group);
        const size_t slash = group.rfind('/');
        if (slash == std::string::npos) return;
        group.resize(slash);
    }
}

}  // namespace

CgroupLimits cgroup_limits(const std::string& root) {
    CgroupLimits limits;
    const std::string mount = root + "/sys/fs/cgroup";
    std::ifstream groups(root + "/proc/self/cgroup");
    std::string line;
    while (std::getline(groups, line)) {  // "hierarchy:controllers:/group"
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1);
        if (controllers.empty()) {
            for_each_level(limits, mount, group, read_v2);
            for_each_level(limits, mount + "/unified", group, read_v2);
        }
        std::istringstream names(controllers);
        for (std::string name; std::getline(names, name, ',');) {
            if (name == "cpu") for_each_level(limits, mount + "/" + controllers, group, read_v1_cpu);
            if (name == "memory") for_each_level(limits, mount + "/" + controllers, group, read_v1_memory);
        }
    }
    return limits;
}

}  // namespace fasa
