// The thread team: every task runs exactly once, whatever the sizes and however late threads wake up.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "base/team.h"
#include "check.h"

using fasa::Team;

TEST(team_runs_every_task_once) {
    for (const int n_threads : {1, 2, 3, 5}) {
        Team team(n_threads);
        for (const int64_t n : {0, 1, 2, 3, 7, 64, 1000}) {
            std::vector<std::atomic<int>> runs(static_cast<size_t>(n));
            std::atomic<bool> in_range = true;
            team.run(n, [&](int64_t task, int thread) {
                if (thread < 0 || thread >= n_threads) in_range = false;
                runs[static_cast<size_t>(task)]++;
            });
            CHECK(in_range);
            for (const auto& count : runs) CHECK(count == 1);
        }
    }
}

TEST(team_loops_in_quick_succession) {
    Team team(4);
    int64_t sum = 0;
    for (int64_t loop = 1; loop <= 20000; ++loop) {
        std::atomic<int64_t> part = 0;
        team.run(5, [&](int64_t task, int) { part += loop * task; });
        sum += part;
    }
    CHECK(sum == int64_t{10} * 20000 * 20001 / 2);
}

TEST(team_wakes_from_sleep) {
    Team team(3);
    for (int loop = 0; loop < 5; ++loop) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        std::atomic<int> n = 0;
        team.run(30, [&](int64_t, int) { n++; });
        CHECK(n == 30);
    }
}

TEST(team_works_alone_after_a_fork) {
    auto team = std::make_unique<Team>(4);
    std::atomic<int> before = 0;
    team->run(100, [&](int64_t, int) { before++; });
    CHECK(before == 100);

    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(20);  // a child that waits for threads it does not have ends by a signal
        int n = 0, elsewhere = 0;
        team->run(1000, [&](int64_t task, int thread) {
            n += task == n;
            elsewhere += thread != 0;
        });
        team.reset();
        _exit(n == 1000 && elsewhere == 0 ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);

    std::atomic<int> after = 0;
    team->run(100, [&](int64_t, int) { after++; });
    CHECK(after == 100);
}
