// The command line of a test program:
//
//   PROGRAM              run all tests
//   PROGRAM --list       print their names
//   PROGRAM NAME...      run these
#pragma once

#include <cstring>

#include "check.h"

namespace check {

inline bool chosen(const char* name, int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
        if (std::strcmp(name, argv[i]) == 0) return true;
    }
    return argc == 1;
}

inline bool passes(const Test& test) {
    const int before = failures;
    try {
        test.body();
    } catch (const std::exception& error) {
        report(false, test.name, 0, std::string("threw ") + error.what());
    }
    return failures == before;
}

inline int run_tests(int argc, char** argv) {
    if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
        for (const Test& test : tests()) std::printf("%s\n", test.name);
        return 0;
    }
    int n_run = 0, n_failed = 0;
    for (const Test& test : tests()) {
        if (!chosen(test.name, argc, argv)) continue;
        const bool ok = passes(test);
        std::printf("%s %s\n", ok ? "ok  " : "FAIL", test.name);
        ++n_run;
        n_failed += !ok;
    }
    std::printf("%d tests, %d failed\n", n_run, n_failed);
    return n_failed == 0 && n_run > 0 ? 0 : 1;
}

}  // namespace check
