// XXH64 against the values of the reference implementation (seed 0), and in pieces of any size.
#include <cstring>
#include <string>

#include "base/hash.h"
#include "check.h"

using namespace fasa;

TEST(hash_of_known_texts) {
    CHECK(hash64("", 0) == 0xEF46DB3751D8E999u);
    CHECK(hash64("a", 1) == 0xD24EC4F1A98C6E5Bu);
    CHECK(hash64("abc", 3) == 0x44BC2CF5AD770999u);
    const char* text = "The quick brown fox jumps over the lazy dog";
    CHECK(hash64(text, std::strlen(text)) == 0x0B242D361FDA71BCu);
}

TEST(hash_in_pieces) {
    std::string data;
    for (int i = 0; i < 300; ++i) data.push_back(static_cast<char>(i * 7));
    const uint64_t whole = hash64(data.data(), data.size());
    for (const size_t piece : {1u, 3u, 31u, 32u, 33u, 100u}) {
        Hash64 hash;
        for (size_t at = 0; at < data.size(); at += piece) hash.update(&data[at], std::min(piece, data.size() - at));
        CHECK(hash.digest() == whole);
    }
}
