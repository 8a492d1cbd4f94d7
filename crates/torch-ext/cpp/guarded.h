// No exception may cross into Rust: a function runs its work in `guarded` and returns nullptr, or a message that the caller
// frees with te_free_message.

#pragma once

#include <c10/util/Exception.h>

#include <cstring>

template <class F> char *guarded(F &&f) {
  try {
    f();
    return nullptr;
  } catch (const c10::Error &e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return strdup(e.what());
  }
}
