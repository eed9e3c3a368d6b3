// A sequence on disk: header, tokens, KV rows, checksum (docs/formats.md). A file is believed only after all of it was
// checked, so a damaged one changes nothing.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/buffer.h"
#include "base/mmap.h"
#include "base/team.h"
#include "kv/store.h"

namespace fasa {

// Written beside the path and renamed, so that an interrupted save leaves the old file. Throws IO.
void write_state(const std::string& path, uint64_t fingerprint, const KvStore& kv, int32_t seq,
                 std::span<const int32_t> tokens);

class StateFile {
   public:
    // Throws IO, FORMAT (damaged, or saved with another model), CONTEXT_FULL or MEMORY.
    StateFile(const std::string& path, uint64_t fingerprint, int32_t n_vocab, const KvStore& kv);

    int32_t n_tokens() const { return n_tokens_; }
    void restore(KvStore& kv, int32_t seq, int32_t* tokens);

   private:
    MappedFile file_;
    Team team_;
    Buffer staging_;  // on the way to a device with memory of its own
    int32_t n_tokens_ = 0;
};

}  // namespace fasa
