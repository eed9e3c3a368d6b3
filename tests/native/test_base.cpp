// Control group limits, tensor types, mapped files, the log sink.
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "base/cgroup.h"
#include "base/cpu.h"
#include "base/dtype.h"
#include "base/log.h"
#include "base/mmap.h"
#include "check.h"

using namespace fasa;
namespace fs = std::filesystem;

namespace {

// A directory that is gone with the object.
class Folder {
   public:
    Folder() {
        std::string pattern = fs::temp_directory_path() / "fasa_testXXXXXX";
        path_ = mkdtemp(pattern.data());
    }
    ~Folder() { fs::remove_all(path_); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;

    std::string path() const { return path_; }
    Folder& write(const std::string& name, const std::string& text) {
        fs::create_directories((path_ / name).parent_path());
        std::ofstream(path_ / name) << text;
        return *this;
    }

   private:
    fs::path path_;
};

constexpr uint64_t no_limit = std::numeric_limits<uint64_t>::max();

}  // namespace

TEST(cgroup_v2_takes_the_tightest_level) {
    Folder root;
    root.write("proc/self/cgroup", "0::/job/step\n")
        .write("sys/fs/cgroup/job/cpu.max", "150000 100000\n")
        .write("sys/fs/cgroup/job/step/cpu.max", "max 100000\n")
        .write("sys/fs/cgroup/job/memory.max", "1000000\n")
        .write("sys/fs/cgroup/job/memory.current", "900000\n")
        .write("sys/fs/cgroup/job/memory.stat", "anon 500000\ninactive_file 300000\nactive_file 100000\n")
        .write("sys/fs/cgroup/job/step/memory.max", "max\n");
    const CgroupLimits limits = cgroup_limits(root.path());
    CHECK(limits.cores == 1.5);
    CHECK(limits.memory_free == 500000);
}

TEST(cgroup_v1_in_a_container_reads_the_mount) {
    Folder root;  // the group's path is the host's and does not exist inside
    root.write("proc/self/cgroup", "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
        .write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n")
        .write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
        .write("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n")
        .write("sys/fs/cgroup/memory/memory.usage_in_bytes", "3000\n")
        .write("sys/fs/cgroup/memory/memory.stat", "cache 9\ntotal_inactive_file 1000\n");
    const CgroupLimits limits = cgroup_limits(root.path());
    CHECK(limits.cores == 2.0);
    CHECK(limits.memory_free == 3000);
}

TEST(cgroup_without_limits) {
    Folder root;
    root.write("proc/self/cgroup", "nonsense\n1:cpu:/a\n")
        .write("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1\n")
        .write("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
    CHECK(std::isinf(cgroup_limits(root.path()).cores));
    CHECK(cgroup_limits(root.path()).memory_free == no_limit);
    CHECK(cgroup_limits(root.path() + "/missing").memory_free == no_limit);
}

TEST(cgroup_over_its_limit_leaves_nothing) {
    Folder root;
    root.write("proc/self/cgroup", "0::/\n")
        .write("sys/fs/cgroup/memory.max", "1000\n")
        .write("sys/fs/cgroup/memory.current", "2000\n");
    CHECK(cgroup_limits(root.path()).memory_free == 0);
}

TEST(cpu_info_describes_this_machine) {
    const int n_cores = processor().n_cores;
    CHECK(n_cores >= 1 && n_cores <= static_cast<int>(sysconf(_SC_NPROCESSORS_CONF)));
    CHECK(built_isas().find(cpu_info().name) != std::string::npos);
    CHECK(!processor().model.empty());
    const uint64_t physical =
        static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    CHECK(memory_available() > 0 && memory_available() <= physical);
}

TEST(dtype_names_and_traits_agree) {
    const std::string supported = dtype_supported_names();
    int n = 0;
    for (uint32_t type = 0; type < 256; ++type) {
        const DTypeTraits traits = dtype_traits(type);
        if (!traits.name) continue;
        ++n;
        CHECK(std::strcmp(traits.name, dtype_known_name(type)) == 0);
        CHECK(supported.find(traits.name) != std::string::npos);
        CHECK(traits.block_values > 0 && traits.block_bytes > 0);
    }
    CHECK(n == 15);
    CHECK(dtype_row_bytes(FASA_DTYPE_Q4_K, 512) == 288);
    CHECK(std::strcmp(dtype_known_name(16), "IQ2_XXS") == 0);
    CHECK(dtype_known_name(99) == nullptr);
}

TEST(mapped_files) {
    Folder folder;
    folder.write("three", "abc").write("empty", "");
    MappedFile three(folder.path() + "/three");
    CHECK(three.bytes().size() == 3 && three.bytes()[2] == 'c');
    const MappedFile moved(std::move(three));
    CHECK(moved.bytes().size() == 3 && three.bytes().empty());
    CHECK(MappedFile(folder.path() + "/empty").bytes().empty());
    CHECK_THROWS(MappedFile(folder.path() + "/none"), FASA_ERROR_IO, "/none", "No such file");
    CHECK_THROWS(MappedFile(folder.path()), FASA_ERROR_IO, folder.path(), "not a regular file");
}

TEST(log_goes_to_the_sink) {
    std::string seen;
    log_sink_set([](fasa_log_level level, const char* text,
                    void* user) { *static_cast<std::string*>(user) += std::to_string(level) + text; },
                 &seen);
    log_message(FASA_LOG_WARN, "%d tokens", 7);
    log_sink_set(nullptr, nullptr);
    log_message(FASA_LOG_WARN, "dropped");
    CHECK(seen == "27 tokens");
}
