#include "base/log.h"

#include <cstdarg>
#include <cstdio>
#include <mutex>

namespace fasa {
namespace {

struct Sink {
    fasa_log_fn fn = nullptr;
    void* user = nullptr;
};

std::mutex mutex;
Sink current;

}  // namespace

void log_sink_set(fasa_log_fn fn, void* user) {
    const std::lock_guard lock(mutex);
    current = {fn, user};
}

void log_message(fasa_log_level level, const char* format, ...) {
    Sink sink;
    {
        const std::lock_guard lock(mutex);
        sink = current;
    }
    if (!sink.fn) return;
    char text[1024];  // a longer message is cut
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof text, format, args);
    va_end(args);
    sink.fn(level, text, sink.user);
}

}  // namespace fasa
