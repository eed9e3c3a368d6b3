#include "runtime/state_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

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
constexpr size_t staging_bytes = size_t{4} << 20;  // of the cache, on their way to the file

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

class Writer {
   public:
    explicit Writer(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "wb")) {
        if (!file_) give_up();
    }
    ~Writer() {
        if (file_) {
            std::fclose(file_);
            std::remove(path_.c_str());
        }
    }
    void write(const void* data, size_t n) {
        hash_.update(data, n);
        if (n > 0 && std::fwrite(data, 1, n, file_) != n) give_up();
    }
    void finish(const std::string& target) {
        const uint64_t digest = hash_.digest();
        write(&digest, sizeof digest);
        if (std::fflush(file_) != 0 || fsync(fileno(file_)) != 0) give_up();
        if (std::rename(path_.c_str(), target.c_str()) != 0) give_up();
        std::fclose(std::exchange(file_, nullptr));
    }

   private:
    [[noreturn]] void give_up() {
        const int error = errno;
        fail(FASA_ERROR_IO, "cannot write the state file %s: %s", path_.c_str(), std::strerror(error));
    }

    std::string path_;
    std::FILE* file_;
    Hash64 hash_;
};

}  // namespace

void write_state(const std::string& path, uint64_t fingerprint, const KvStore& kv, int32_t seq,
                 std::span<const int32_t> tokens) {
    Writer writer(path + ".partial");
    const Header header = make_header(fingerprint, kv, tokens.size());
    writer.write(&header, sizeof header);
    writer.write(tokens.data(), tokens.size_bytes());
    std::vector<uint8_t> staging(std::min(staging_bytes, kv.shape().n_bytes()));
    kv.for_each_span(seq, static_cast<int32_t>(tokens.size()), [&](const uint8_t* data, size_t n) {
        if (kv.is_on_host(data)) return writer.write(data, n);
        for (size_t at = 0; at < n; at += staging.size()) {
            const size_t part = std::min(staging.size(), n - at);
            kv.device().copy(staging.data(), data + at, part);
            writer.write(staging.data(), part);
        }
    });
    writer.finish(path);
}

StateFile::StateFile(const std::string& path, uint64_t fingerprint, int32_t n_vocab, const KvStore& kv) : file_(path) {
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
    if (hash64(bytes.data(), n_hashed) != digest) {
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
}

void StateFile::restore(KvStore& kv, int32_t seq, int32_t* tokens) const {
    const uint8_t* at = file_.bytes().data() + sizeof(Header);
    if (n_tokens_ == 0) return;
    std::memcpy(tokens, at, sizeof(int32_t) * n_tokens_);
    at += sizeof(int32_t) * n_tokens_;
    kv.for_each_span(seq, n_tokens_, [&](void* data, size_t n) {
        if (kv.is_on_host(data)) {
            std::memcpy(data, at, n);
        } else {
            kv.device().copy(data, at, n);
        }
        at += n;
    });
}

}  // namespace fasa
