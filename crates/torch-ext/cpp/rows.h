// What loops over rows of numbers share: bf16 as a type, a build for every generation of processors, sums and the
// exponential in a form that compilers turn into vectors.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))
// For a loop over arrays that don't overlap, or are the same from the start: the compiler needs no checks for it.
#define APART _Pragma("GCC ivdep")

namespace {

struct Bf16 {
  uint16_t bits;
};

INLINE float up(float x) { return x; }
INLINE float up(Bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
INLINE void down(float x, float &to) { to = x; }
// To nearest, halves to even; NaN stays NaN.
INLINE void down(float x, Bf16 &to) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}

// Sums run in so many lanes, so that a compiler may use vectors without reordering anything.
constexpr int64_t LANES = 16;

// The sum of f(i) over 0..d.
template <class F> INLINE float sum(int64_t d, F &&f) {
  float lanes[LANES] = {};
  int64_t whole = d / LANES * LANES;
  for (int64_t i = 0; i < whole; i += LANES)
    for (int64_t j = 0; j < LANES; ++j) lanes[j] += f(i + j);
  float all = 0;
  for (int64_t j = 0; j < LANES; ++j) all += lanes[j];
  for (int64_t i = whole; i < d; ++i) all += f(i);
  return all;
}

// e^x within 2e-7 of it, for |x| <= 87: the C library's is no loop that a compiler turns into vectors, and libtorch's
// vectors are closed to code outside of its own build.
INLINE float exponential(float x) {
  float n = std::nearbyint(x * 1.44269504f);
  float r = (x - n * 0.693145752f) - n * 1.42860677e-6f; // x - n ln 2, ln 2 in two parts
  float p = 1.98756915e-4f;
  p = p * r + 1.39819995e-3f;
  p = p * r + 8.33345200e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666655e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

// Pairs of neighbours turned by the angles whose cosines and sines are `turns`, cos, sin, cos, ...; back where `sign` is -1.
template <class From, class To> INLINE void rotate(const From *from, To *to, const float *turns, float sign, int64_t width) {
  APART for (int64_t j = 0; j < width; j += 2) {
    float a = up(from[j]), b = up(from[j + 1]), cos = turns[j], sin = sign * turns[j + 1];
    down(a * cos - b * sin, to[j]);
    down(a * sin + b * cos, to[j + 1]);
  }
}

} // namespace

// One build for each generation of vector registers; the right one is chosen when the program is loaded. clang can't make
// them of function templates.
#if defined(__x86_64__) && !defined(__clang__)
#define EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_CPU
#endif
