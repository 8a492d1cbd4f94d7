// Fused loops over the rows of tensors on a GPU, compiled when they are first used, each for its widths and types: D numbers
// a row, THREADS threads, PER vectors of four numbers a thread. One block has a row at a time; everything is computed in f32.
// Sums have one order, whatever the GPU.

typedef long long i64;

struct Bf16 {
  unsigned short bits;
};

__device__ inline unsigned short rounded(float x) {
#if __CUDA_ARCH__ >= 800
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  unsigned bits = __float_as_uint(x);
  return x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#endif
}

__device__ inline void load(const float *from, float *v) {
  float4 f = *reinterpret_cast<const float4 *>(from);
  v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
}
__device__ inline void load(const Bf16 *from, float *v) {
  uint2 pairs = *reinterpret_cast<const uint2 *>(from);
  v[0] = __uint_as_float(pairs.x << 16), v[1] = __uint_as_float(pairs.x & 0xffff0000u);
  v[2] = __uint_as_float(pairs.y << 16), v[3] = __uint_as_float(pairs.y & 0xffff0000u);
}
__device__ inline void store(float *to, const float *v) {
  *reinterpret_cast<float4 *>(to) = make_float4(v[0], v[1], v[2], v[3]);
}
__device__ inline unsigned pair(float a, float b) { return rounded(a) | static_cast<unsigned>(rounded(b)) << 16; }
__device__ inline void store(Bf16 *to, const float *v) {
  *reinterpret_cast<uint2 *>(to) = make_uint2(pair(v[0], v[1]), pair(v[2], v[3]));
}

#if defined(NORM) || defined(GATE)

// Registers are shared out so that a whole block's fit.
#define ROW_KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

// For each vector of this thread, the k-th of which begins at column i.
#define EACH                                                                                                           \
  _Pragma("unroll") for (int k = 0; k < PER; ++k) if (int i = (k * THREADS + static_cast<int>(threadIdx.x)) * 4; i < D)
#define FOUR _Pragma("unroll") for (int j = 0; j < 4; ++j)

// The sums of v over the block, in every thread.
template <int N> __device__ void block_sum(float (&v)[N]) {
  __shared__ float parts[N][32];
#pragma unroll
  for (int n = 0; n < N; ++n)
    for (int apart = 16; apart > 0; apart /= 2) v[n] += __shfl_xor_sync(0xffffffffu, v[n], apart);
  if (THREADS == 32) return;
  __syncthreads(); // the sums before these have been read
  if (threadIdx.x % 32 == 0)
    for (int n = 0; n < N; ++n) parts[n][threadIdx.x / 32] = v[n];
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    v[n] = 0;
    for (int warp = 0; warp < THREADS / 32; ++warp) v[n] += parts[n][warp];
  }
}

// Mean and 1 / sqrt(variance + eps) of the block's row.
__device__ inline float2 moments(const float (&v)[PER][4], float eps) {
  float total[1] = {0}, squares[1] = {0};
  EACH FOUR total[0] += v[k][j];
  block_sum(total);
  float mean = total[0] / D;
  EACH FOUR squares[0] += (v[k][j] - mean) * (v[k][j] - mean);
  block_sum(squares);
  return make_float2(mean, 1.0f / sqrtf(squares[0] / D + eps));
}

template <class Out>
__device__ void put_normed(const float (&v)[PER][4], float2 m, const float *weight, const float *bias, Out *out) {
  EACH {
    float w[4], b[4], y[4];
    load(weight + i, w), load(bias + i, b);
    FOUR y[j] = (v[k][j] - m.x) * m.y * w[j] + b[j];
    store(out + i, y);
  }
}

#endif

#ifdef NORM

// total = x + branch (where there is one; it may be x itself), out = its layer norm; `statistics` may be null.
ROW_KERNEL norm_rows(const float *x, const BRANCH *branch, float *total, const float *weight, const float *bias,
                     OUT *out, float *statistics, float eps) {
  i64 row = blockIdx.x, at = row * D;
  float v[PER][4];
  EACH {
    load(x + at + i, v[k]);
    if (branch) {
      float more[4];
      load(branch + at + i, more);
      FOUR v[k][j] += more[j];
      store(total + at + i, v[k]);
    }
  }
  float2 m = moments(v, eps);
  put_normed(v, m, weight, bias, out + at);
  if (statistics && threadIdx.x == 0) reinterpret_cast<float2 *>(statistics)[row] = m;
}

// With n = (x - mean) * scale and g = grad * weight: dx = scale * (g - mean(g) - n * mean(g * n)), plus what comes down the
// stream; `narrow`, where it is there, gets it once more. `sums` [blocks, 2, D]: of the gradients of weight and bias.
ROW_KERNEL norm_rows_back(const float *x, const OUT *grad, const float *stream, const float *weight,
                          const float *statistics, float *dx, Bf16 *narrow, float *sums, i64 rows) {
  float dweight[PER][4] = {}, dbias[PER][4] = {};
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
    i64 at = row * D;
    float2 m = reinterpret_cast<const float2 *>(statistics)[row];
    float n[PER][4], g[PER][4], means[2] = {0, 0};
    EACH {
      float w[4];
      load(x + at + i, n[k]), load(grad + at + i, g[k]), load(weight + i, w);
      FOUR {
        n[k][j] = (n[k][j] - m.x) * m.y;
        dweight[k][j] += g[k][j] * n[k][j];
        dbias[k][j] += g[k][j];
        g[k][j] *= w[j];
        means[0] += g[k][j];
        means[1] += g[k][j] * n[k][j];
      }
    }
    block_sum(means);
    EACH {
      float d[4];
      FOUR d[j] = m.y * (g[k][j] - means[0] / D - n[k][j] * (means[1] / D));
      if (stream) {
        float more[4];
        load(stream + at + i, more);
        FOUR d[j] += more[j];
      }
      store(dx + at + i, d);
      if (narrow) store(narrow + at + i, d);
    }
  }
  sums += static_cast<i64>(blockIdx.x) * 2 * D;
  EACH store(sums + i, dweight[k]), store(sums + D + i, dbias[k]);
}

#endif
#ifdef GATE

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

// out = norm(silu(a) * b), or without a norm where `weight` is null. Rows of a and b are `step` apart.
ROW_KERNEL gate_rows(const NUMBER *a, const NUMBER *b, i64 step, NUMBER *out, float *statistics, const float *weight,
                     const float *bias, float eps) {
  i64 row = blockIdx.x, from = row * step;
  float v[PER][4];
  EACH {
    float y[4];
    load(a + from + i, v[k]), load(b + from + i, y);
    FOUR v[k][j] = v[k][j] * sigmoid(v[k][j]) * y[j];
    if (!weight) store(out + row * D + i, v[k]);
  }
  if (!weight) return;
  float2 m = moments(v, eps);
  put_normed(v, m, weight, bias, out + row * D);
  if (threadIdx.x == 0) reinterpret_cast<float2 *>(statistics)[row] = m;
}

// With s = sigmoid(a) and h = a s b: da = dh b s (1 + a (1 - s)), db = dh a s; with n = (h - mean) scale and g = grad weight,
// dh = scale (g - mean(g) - n mean(g n)). `sums` as above.
ROW_KERNEL gate_rows_back(const NUMBER *a, const NUMBER *b, i64 step, const NUMBER *grad, NUMBER *da, NUMBER *db,
                          const float *statistics, const float *weight, float *sums, i64 rows) {
  float dweight[PER][4] = {}, dbias[PER][4] = {};
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
    i64 from = row * step;
    float2 m = weight ? reinterpret_cast<const float2 *>(statistics)[row] : make_float2(0, 1);
    float x[PER][4], y[PER][4], g[PER][4], means[2] = {0, 0};
    EACH {
      load(a + from + i, x[k]), load(b + from + i, y[k]), load(grad + row * D + i, g[k]);
      if (weight) {
        float w[4];
        load(weight + i, w);
        FOUR {
          float n = (x[k][j] * sigmoid(x[k][j]) * y[k][j] - m.x) * m.y;
          dweight[k][j] += g[k][j] * n;
          dbias[k][j] += g[k][j];
          g[k][j] *= w[j];
          means[0] += g[k][j];
          means[1] += g[k][j] * n;
        }
      }
    }
    if (weight) block_sum(means);
    EACH {
      float dx[4], dy[4];
      FOUR {
        float s = sigmoid(x[k][j]), dh = g[k][j];
        if (weight) {
          float n = (x[k][j] * s * y[k][j] - m.x) * m.y;
          dh = m.y * (dh - means[0] / D - n * (means[1] / D));
        }
        dx[j] = dh * y[k][j] * s * (1.0f + x[k][j] * (1.0f - s));
        dy[j] = dh * x[k][j] * s;
      }
      store(da + from + i, dx), store(db + from + i, dy);
    }
  }
  if (!weight) return;
  sums += static_cast<i64>(blockIdx.x) * 2 * D;
  EACH store(sums + i, dweight[k]), store(sums + D + i, dbias[k]);
}

#endif
#ifdef ROTATE

__device__ inline float2 load_pair(const float *from) { return *reinterpret_cast<const float2 *>(from); }
__device__ inline float2 load_pair(const Bf16 *from) {
  unsigned both = *reinterpret_cast<const unsigned *>(from);
  return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
}
__device__ inline void store_pair(float *to, float a, float b) { *reinterpret_cast<float2 *>(to) = make_float2(a, b); }
__device__ inline void store_pair(Bf16 *to, float a, float b) { *reinterpret_cast<unsigned *>(to) = pair(a, b); }

// Pairs of neighbours turned by the angles whose cosines and sines are `turns` [B or 1, T, WIDTH] (`each` numbers a sample);
// back where `sign` is -1. Strides are those of samples, tokens and heads.
extern "C" __global__ void rotate_pairs(const NUMBER *from, i64 f0, i64 f1, i64 f2, NUMBER *to, i64 t0, i64 t1, i64 t2, const float *turns,
                                  i64 each, float sign, int tokens, int pairs) {
  int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= pairs) return;
  int j = p % (WIDTH / 2) * 2, rest = p / (WIDTH / 2), h = rest % HEADS;
  rest /= HEADS;
  int t = rest % tokens, b = rest / tokens;
  float2 turn = *reinterpret_cast<const float2 *>(turns + b * each + static_cast<i64>(t) * WIDTH + j);
  turn.y *= sign;
  from += b * f0 + t * f1 + h * f2 + j;
  to += b * t0 + t * t1 + h * t2 + j;
  float2 both = load_pair(from);
  store_pair(to, both.x * turn.x - both.y * turn.y, both.x * turn.y + both.y * turn.x);
}

#endif
