// What loops over rows of numbers share: bf16 as a type, and a build for every generation of processors.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct Bf16 {
  uint16_t bits;
};

inline float up(float x) { return x; }
inline float up(Bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline void down(float x, float &to) { to = x; }
// To nearest, halves to even; NaN stays NaN.
inline void down(float x, Bf16 &to) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}

} // namespace

// One build for each generation of vector registers; the right one is chosen when the program is loaded.
#define EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#if !defined(__x86_64__)
#undef EVERY_CPU
#define EVERY_CPU
#endif
