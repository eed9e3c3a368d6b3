// Failures inside the library are exceptions of one type; capi.cpp turns them into status codes.
#pragma once

#include <exception>
#include <string>

#include "fasa.h"

namespace fasa {

class Error : public std::exception {
   public:
    Error(fasa_status status, std::string text) : status_(status), text_(std::move(text)) {}
    fasa_status status() const { return status_; }
    const char* what() const noexcept override { return text_.c_str(); }

   private:
    fasa_status status_;
    std::string text_;
};

// Throws Error with a printf-formatted text: what is wrong, where, and what to do.
[[noreturn]] void fail(fasa_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace fasa
