// Runs crates/torch-ext/cpp/kernels.cu on the CPU: a block's threads are threads of the system, its blocks follow one another.
// Compiled by ../gpu_kernels.py for each width and type.

#include <barrier>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static
#ifndef THREADS
#define THREADS 256
#endif

struct Index {
  unsigned x;
};
static thread_local Index threadIdx;
static Index blockIdx, gridDim, blockDim;

struct float4 {
  float x, y, z, w;
};
struct float2 {
  float x, y;
};
struct uint2 {
  unsigned x, y;
};
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static float2 make_float2(float x, float y) { return {x, y}; }
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static float __uint_as_float(unsigned bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
static unsigned __float_as_uint(float f) {
  unsigned bits;
  memcpy(&bits, &f, 4);
  return bits;
}
#define __expf expf

static std::barrier together(THREADS);
static float lanes[THREADS];
static void __syncthreads() { together.arrive_and_wait(); }
static float __shfl_xor_sync(unsigned, float v, int apart) {
  lanes[threadIdx.x] = v;
  __syncthreads();
  float other = lanes[threadIdx.x ^ apart];
  __syncthreads();
  return other;
}

#include "../../../crates/torch-ext/cpp/kernels.cu"

template <class F> void launch(unsigned blocks, F &&kernel) {
  gridDim.x = blocks, blockDim.x = THREADS;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    std::vector<std::jthread> threads;
    for (unsigned i = 0; i < THREADS; ++i) threads.emplace_back([&, i] { threadIdx.x = i, kernel(); });
  }
}

extern "C" {
#ifdef NORM
void norm(unsigned blocks, const float *x, const BRANCH *branch, float *total, const float *weight, const float *bias, OUT *out,
          float *statistics, float eps) {
  launch(blocks, [&] { norm_rows(x, branch, total, weight, bias, out, statistics, eps); });
}
void norm_back(unsigned blocks, const float *x, const OUT *grad, const float *stream, const float *weight,
               const float *statistics, float *dx, Bf16 *narrow, float *sums, i64 rows) {
  launch(blocks, [&] { norm_rows_back(x, grad, stream, weight, statistics, dx, narrow, sums, rows); });
}
#endif
#ifdef GATE
void gate(unsigned blocks, const NUMBER *a, const NUMBER *b, i64 step, NUMBER *out, float *statistics, const float *weight,
          const float *bias, float eps) {
  launch(blocks, [&] { gate_rows(a, b, step, out, statistics, weight, bias, eps); });
}
void gate_back(unsigned blocks, const NUMBER *a, const NUMBER *b, i64 step, const NUMBER *grad, NUMBER *da, NUMBER *db,
               const float *statistics, const float *weight, float *sums, i64 rows) {
  launch(blocks, [&] { gate_rows_back(a, b, step, grad, da, db, statistics, weight, sums, rows); });
}
#endif
#ifdef ROTATE
void rotate(unsigned blocks, const NUMBER *from, i64 f0, i64 f1, i64 f2, NUMBER *to, i64 t0, i64 t1, i64 t2,
            const float *turns, i64 each, float sign, int tokens, int pairs) {
  launch(blocks, [&] { rotate_pairs(from, f0, f1, f2, to, t0, t1, t2, turns, each, sign, tokens, pairs); });
}
#endif
}
