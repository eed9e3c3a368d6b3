#include "base/error.h"

#include <cstdarg>
#include <cstdio>

namespace fasa {

void fail(fasa_status status, const char* format, ...) {
    va_list args, copy;
    va_start(args, format);
    va_copy(copy, args);
    const int n = std::vsnprintf(nullptr, 0, format, copy);
    va_end(copy);
    std::string text(n > 0 ? static_cast<size_t>(n) : 0, '\0');
    if (n > 0) std::vsnprintf(text.data(), text.size() + 1, format, args);
    va_end(args);
    throw Error(status, std::move(text));
}

}  // namespace fasa
