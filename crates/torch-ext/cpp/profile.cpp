// Where time goes, operator by operator, on the thread that asks.

#include "guarded.h"

#include <ATen/record_function.h>

#include <chrono>
#include <map>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

struct Open {
  Clock::time_point began;
  double within = 0; // seconds of operators that this one calls
};
struct Total {
  double seconds = 0; // of itself alone
  int64_t calls = 0;
};

thread_local std::vector<Open> open_operators;
thread_local std::map<std::string, Total> totals;
thread_local at::CallbackHandle handle = 0;

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction &) {
  open_operators.push_back({Clock::now()});
  return nullptr;
}

void end(const at::RecordFunction &function, at::ObserverContext *) {
  if (open_operators.empty()) return;
  auto last = open_operators.back();
  open_operators.pop_back();
  double all = std::chrono::duration<double>(Clock::now() - last.began).count();
  auto &total = totals[function.name()];
  total.seconds += all - last.within;
  total.calls += 1;
  if (!open_operators.empty()) open_operators.back().within += all;
}

} // namespace

extern "C" {

char *te_profile_begin() {
  return guarded([] {
    open_operators.clear();
    totals.clear();
    handle = at::addThreadLocalCallback(
        at::RecordFunctionCallback(begin, end)
            .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  });
}

// Ends it and hands every operator to `each`: its name, the seconds of itself alone, and how often it was called.
char *te_profile_end(void (*each)(void *, const char *, double, int64_t), void *to) {
  return guarded([&] {
    at::removeCallback(handle);
    for (const auto &[name, total] : totals) each(to, name.c_str(), total.seconds, total.calls);
    totals.clear();
  });
}
}
