#include "runtime/state_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/hash.h"

namespace fasa {
namespace {

// All numbers little-endian. The file is header, tokens i32 [n_tokens], KV rows, XXH64 of everything before it.
struct Header {
    char magic[8];
    uint32_t version;
    uint32_t n_tokens;
    uint64_t fingerprint;
    uint32_t n_layer, n_head_kv, head_dim, n_dom;
    uint64_t
        layout;  // XXH64 of the number of dense layers, of which dim lies where in a key, and of how keys are coded
};
static_assert(sizeof(Header) == 48);

constexpr char magic[8] = {'F', 'A', 'S', 'A', 'S', 'E', 'Q', '\0'};
constexpr uint32_t version = 2;
constexpr size_t block_bytes = size_t{2} << 20;  // handled at a time: they stay in the processor's caches
constexpr int n_writers = 2, n_readers = 8;      // threads at most; more would wait for memory

uint64_t layout_hash(const KvStore& kv) {
    Hash64 hash;
    hash.update(&kv.shape().n_dense, sizeof kv.shape().n_dense);
    hash.update(kv.order().data(), kv.order().size() * sizeof(int16_t));
    const int32_t type = static_cast<int32_t>(kv.shape().dom_type);
    if (kv.shape().is_coded()) hash.update(&type, sizeof type);
    return hash.digest();
}

Header make_header(uint64_t fingerprint, const KvStore& kv, size_t n_tokens) {
    const KvShape& shape = kv.shape();
    Header header = {};
    std::memcpy(header.magic, magic, sizeof magic);
    header.version = version;
    header.n_tokens = static_cast<uint32_t>(n_tokens);
    header.fingerprint = fingerprint;
    header.n_layer = static_cast<uint32_t>(shape.n_layer);
    header.n_head_kv = static_cast<uint32_t>(shape.n_head_kv);
    header.head_dim = static_cast<uint32_t>(shape.head_dim);
    header.n_dom = static_cast<uint32_t>(shape.n_dom);
    header.layout = layout_hash(kv);
    return header;
}

// f(offset, n) for blocks of n_bytes, the last one shorter.
template <class F>
void for_each_block(size_t n_bytes, F&& f) {
    for (size_t at = 0; at < n_bytes; at += block_bytes) f(at, std::min(block_bytes, n_bytes - at));
}

// Copies by the whole team.
void copy_by_team(Team& team, uint8_t* to, const uint8_t* from, size_t n) {
    const size_t n_part = (n + n_readers - 1) / n_readers;
    team.run(n_readers, [&](int64_t task, int) {
        const size_t at = std::min(n, n_part * static_cast<size_t>(task));
        std::memcpy(to + at, from + at, std::min(n_part, n - at));
    });
}

// A block of host memory that the device copies to and from at full speed; none is needed where it shares the host's.
Buffer make_staging(const KvStore& kv) {
    const Device& device = kv.device();
    return device.host_buffer(device.has_own_memory() ? block_bytes : 0, "part of a saved state");
}

class Writer {
   public:
    Writer(const std::string& path, Team& team)
        : path_(path), team_(team), file_(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
        if (file_ < 0) give_up(errno);
    }
    ~Writer() {
        if (file_ >= 0) {
            ::close(file_);
            std::remove(path_.c_str());
        }
    }
    // A block is summed up and written at the same time.
    void write(const void* data, size_t n) {
        const auto* bytes = static_cast<const uint8_t*>(data);
        int error = 0;
        for_each_block(n, [&](size_t at, size_t n_block) {
            team_.run(2, [&](int64_t task, int) {
                if (task == 0) return hash_.update(bytes + at, n_block);
                error = append(bytes + at, n_block);
            });
            if (error != 0) give_up(error);
        });
    }
    void finish(const std::string& target) {
        const uint64_t digest = hash_.digest();
        write(&digest, sizeof digest);
        if (::fsync(file_) != 0) give_up(errno);
        if (std::rename(path_.c_str(), target.c_str()) != 0) give_up(errno);
        ::close(std::exchange(file_, -1));
    }

   private:
    // Returns errno, or 0.
    int append(const uint8_t* data, size_t n) {
        while (n > 0) {
            const ssize_t written = ::write(file_, data, n);
            if (written < 0 && errno != EINTR) return errno;
            data += std::max<ssize_t>(written, 0);
            n -= static_cast<size_t>(std::max<ssize_t>(written, 0));
        }
        return 0;
    }
    [[noreturn]] void give_up(int error) {
        fail(FASA_ERROR_IO, "cannot write the state file %s: %s", path_.c_str(), std::strerror(error));
    }

    std::string path_;
    Team& team_;
    int file_;
    Hash64 hash_;
};

// Of a mapped file: while a block is summed up, the pages of the next one are brought in.
uint64_t hash_mapped(Team& team, const uint8_t* data, size_t n) {
    Hash64 hash;
    for_each_block(n, [&](size_t at, size_t n_block) {
        const size_t next = at + n_block;
        team.run(2, [&](int64_t task, int) {
            if (task == 0) return hash.update(data + at, n_block);
            if (next < n) read_ahead(data + next, std::min(block_bytes, n - next));
        });
    });
    return hash.digest();
}

}  // namespace

void write_state(const std::string& path, uint64_t fingerprint, const KvStore& kv, int32_t seq,
                 std::span<const int32_t> tokens) {
    Team team(std::min(kv.device().n_threads(), n_writers));
    Writer writer(path + ".partial", team);
    const Header header = make_header(fingerprint, kv, tokens.size());
    writer.write(&header, sizeof header);
    writer.write(tokens.data(), tokens.size_bytes());
    const Buffer staging = make_staging(kv);
    kv.for_each_span(seq, static_cast<int32_t>(tokens.size()), [&](const uint8_t* data, size_t n) {
        if (kv.is_on_host(data)) return writer.write(data, n);
        for_each_block(n, [&](size_t at, size_t n_block) {
            kv.device().copy(staging.data(), data + at, n_block);
            writer.write(staging.data(), n_block);
        });
    });
    writer.finish(path);
}

StateFile::StateFile(const std::string& path, uint64_t fingerprint, int32_t n_vocab, const KvStore& kv)
    : file_(path), team_(std::min(kv.device().n_threads(), n_readers)) {
    const KvShape& shape = kv.shape();
    const auto bytes = file_.bytes();
    Header header;
    if (bytes.size() < sizeof header + sizeof(uint64_t)) {
        fail(FASA_ERROR_FORMAT, "%s is too short (%zu bytes) for a saved state", path.c_str(), bytes.size());
    }
    std::memcpy(&header, bytes.data(), sizeof header);
    if (std::memcmp(header.magic, magic, sizeof magic) != 0) {
        fail(FASA_ERROR_FORMAT, "%s is not a saved state: it does not start with FASASEQ", path.c_str());
    }
    if (header.version != version) {
        fail(FASA_ERROR_FORMAT, "%s is a saved state of version %u, this library reads version %u; save it again",
             path.c_str(), header.version, version);
    }
    const Header expected = make_header(fingerprint, kv, header.n_tokens);
    if (std::memcmp(&header, &expected, offsetof(Header, n_dom)) != 0) {
        fail(FASA_ERROR_FORMAT, "%s was saved with another model or quantisation", path.c_str());
    }
    if (header.n_dom != expected.n_dom || header.layout != expected.layout) {
        fail(FASA_ERROR_FORMAT,
             "%s was saved with another layout of the KV cache (%u dominant dims, here %u): load it with "
             "the method, n_tip, dense_layers, k_dom and calibration that it was saved with",
             path.c_str(), header.n_dom, expected.n_dom);
    }
    const uint64_t n_expected =
        sizeof header + sizeof(uint64_t) + uint64_t{header.n_tokens} * (sizeof(int32_t) + shape.token_bytes());
    if (bytes.size() != n_expected) {
        fail(FASA_ERROR_FORMAT, "%s is damaged: it has %zu bytes, and %u tokens need %llu", path.c_str(), bytes.size(),
             header.n_tokens, static_cast<unsigned long long>(n_expected));
    }
    const size_t n_hashed = bytes.size() - sizeof(uint64_t);
    uint64_t digest;
    std::memcpy(&digest, bytes.data() + n_hashed, sizeof digest);
    if (hash_mapped(team_, bytes.data(), n_hashed) != digest) {
        fail(FASA_ERROR_FORMAT, "%s is damaged: its checksum does not match", path.c_str());
    }
    if (header.n_tokens > static_cast<uint32_t>(shape.n_ctx)) {
        fail(FASA_ERROR_CONTEXT_FULL, "%s holds %u tokens, but n_ctx is %d", path.c_str(), header.n_tokens,
             shape.n_ctx);
    }
    n_tokens_ = static_cast<int32_t>(header.n_tokens);
    for (int32_t i = 0; i < n_tokens_; ++i) {
        int32_t token;
        std::memcpy(&token, bytes.data() + sizeof header + i * sizeof token, sizeof token);
        if (token < 0 || token >= n_vocab)
            fail(FASA_ERROR_FORMAT, "%s holds the token %d, out of range", path.c_str(), token);
    }
    staging_ = make_staging(kv);
}

void StateFile::restore(KvStore& kv, int32_t seq, int32_t* tokens) {
    const uint8_t* from = file_.bytes().data() + sizeof(Header);
    if (n_tokens_ == 0) return;
    std::memcpy(tokens, from, sizeof(int32_t) * n_tokens_);
    from += sizeof(int32_t) * n_tokens_;
    auto* staged = static_cast<uint8_t*>(staging_.data());
    kv.for_each_span(seq, n_tokens_, [&](uint8_t* data, size_t n) {
        const bool is_on_host = kv.is_on_host(data);
        for_each_block(n, [&](size_t at, size_t n_block) {
            copy_by_team(team_, is_on_host ? data + at : staged, from + at, n_block);
            if (!is_on_host) kv.device().copy(data + at, staged, n_block);
        });
        from += n;
    });
}

}  // namespace fasa
