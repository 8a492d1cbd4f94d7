// Where time goes, operator by operator: on the CPU of the thread that asks; on a GPU of all threads, each operator waited for.

#include "guarded.h"

#include <ATen/record_function.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
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

// Whose operators are counted: those of the thread that asks, or all of a GPU.
struct Profile {
  std::map<std::string, Total> totals;
  at::CallbackHandle handle = 0;
};

thread_local std::vector<Open> open_operators;
thread_local Profile of_thread;
Profile of_gpu;
std::mutex of_gpu_lock;
std::atomic<c10::DeviceIndex> gpu_index{-1};

Profile &watched() { return gpu_index >= 0 ? of_gpu : of_thread; }

void wait() { c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).synchronizeDevice(gpu_index); }

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction &) {
  if (gpu_index >= 0) wait();
  open_operators.push_back({Clock::now()});
  return nullptr;
}

void end(const at::RecordFunction &function, at::ObserverContext *) {
  if (open_operators.empty()) return;
  if (gpu_index >= 0) wait();
  auto last = open_operators.back();
  open_operators.pop_back();
  double all = std::chrono::duration<double>(Clock::now() - last.began).count();
  std::unique_lock<std::mutex> lock(of_gpu_lock, std::defer_lock);
  if (gpu_index >= 0) lock.lock();
  auto &total = watched().totals[function.name()];
  total.seconds += all - last.within;
  total.calls += 1;
  if (!open_operators.empty()) open_operators.back().within += all;
}

} // namespace

extern "C" {

// Of the CPU where `cuda` is -1, else of that GPU.
char *te_profile_begin(int cuda) {
  return guarded([&] {
    gpu_index = static_cast<c10::DeviceIndex>(cuda);
    open_operators.clear();
    auto callback = at::RecordFunctionCallback(begin, end).scopes(
        {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION});
    watched() = {{}, gpu_index >= 0 ? at::addGlobalCallback(callback) : at::addThreadLocalCallback(callback)};
  });
}

// Ends it and hands every operator to `each`: its name, the seconds of itself alone, and how often it was called.
char *te_profile_end(void (*each)(void *, const char *, double, int64_t), void *to) {
  return guarded([&] {
    auto &profile = watched();
    at::removeCallback(profile.handle);
    for (const auto &[name, total] : profile.totals) each(to, name.c_str(), total.seconds, total.calls);
    profile.totals.clear();
    gpu_index = -1;
  });
}
}
