// A small test harness: TEST(name) { ... } registers itself, CHECK* report a failure and go on.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "base/error.h"

namespace check {

struct Test {
    const char* name;
    void (*body)();
};

inline std::vector<Test>& tests() {
    static std::vector<Test> all;
    return all;
}

inline int failures = 0;

struct Registration {
    Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

inline bool report(bool ok, const char* file, int line, const std::string& what) {
    if (!ok) {
        ++failures;
        std::printf("%s:%d: %s\n", file, line, what.c_str());
    }
    return ok;
}

// The Error that body() throws must have this status and contain each of these texts.
template <class Body>
void throws(Body body, fasa_status status, const std::vector<std::string>& texts, const char* file, int line) {
    try {
        body();
    } catch (const fasa::Error& error) {
        const std::string found = error.what();
        report(error.status() == status, file, line, "status " + std::to_string(error.status()) + ": " + found);
        for (const std::string& text : texts) {
            report(found.find(text) != std::string::npos, file, line, "\"" + text + "\" is not in: " + found);
        }
        return;
    }
    report(false, file, line, "nothing was thrown");
}

}  // namespace check

#define TEST(name)                                             \
    static void name();                                        \
    static const check::Registration name##_test{#name, name}; \
    static void name()

#define CHECK(condition) check::report((condition), __FILE__, __LINE__, #condition)
// |a - b| <= tolerance; false for NaN.
#define CHECK_NEAR(a, b, tolerance)                                        \
    check::report(std::fabs((a) - (b)) <= (tolerance), __FILE__, __LINE__, \
                  std::string(#a " = ") + std::to_string(a) + ", " #b " = " + std::to_string(b))
// CHECK_THROWS(expression, status, "text", ...): an fasa::Error of this status whose message has all the texts.
#define CHECK_THROWS(expression, status, ...) \
    check::throws([&] { (void)(expression); }, status, {__VA_ARGS__}, __FILE__, __LINE__)
