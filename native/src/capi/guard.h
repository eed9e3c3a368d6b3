// The one place where exceptions become status codes.
#pragma once

#include <new>

#include "base/error.h"

namespace fasa {

// Keeps text as this thread's fasa_error_message and returns status.
fasa_status report(fasa_status status, const char* text) noexcept;

// Runs body() and turns what it throws into a status and this thread's error text.
template <class Body>
fasa_status guard(Body&& body) noexcept {
    try {
        body();
        return FASA_OK;
    } catch (const Error& error) {
        return report(error.status(), error.what());
    } catch (const std::bad_alloc&) {
        return report(FASA_ERROR_MEMORY, "out of memory");
    } catch (const std::exception& error) {
        return report(FASA_ERROR, error.what());
    } catch (...) {
        return report(FASA_ERROR, "unknown failure inside the engine");
    }
}

// For pointers that a caller must not leave NULL.
inline void require(const void* pointer, const char* name) {
    if (!pointer) fail(FASA_ERROR_ARGUMENT, "%s is NULL", name);
}

}  // namespace fasa
