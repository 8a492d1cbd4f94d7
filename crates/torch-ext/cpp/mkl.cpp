// MKL has products for AVX2 and AVX-512, and runs them where two functions of its own say that Intel made the processor.
// These stand before them, since an executable's symbols come before its libraries', and say whether it has what those
// products need. On Intel's processors nothing changes, and a libtorch without MKL calls neither.

#if defined(__x86_64__)

#define EXPORTED extern "C" __attribute__((used, visibility("default"))) int

EXPORTED mkl_serv_intel_cpu_true() {
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") || (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
}

EXPORTED mkl_serv_intel_cpu() { return mkl_serv_intel_cpu_true(); }

#endif
