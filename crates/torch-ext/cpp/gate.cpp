// SwiGLU's gate in one pass over memory, forward and backward.

#include "guarded.h"
#include "rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

namespace {

// e^x within 2e-7 of it, for |x| <= 87: the C library's is no loop that a compiler turns into vectors, and libtorch's
// vectors are closed to code outside of its own build.
inline __attribute__((always_inline)) float exponential(float x) {
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

inline __attribute__((always_inline)) float sigmoid(float x) {
  float bounded = x < -87.0f ? -87.0f : (x > 87.0f ? 87.0f : x); // NaN stays
  return 1.0f / (1.0f + exponential(-bounded));
}

template <class T> inline __attribute__((always_inline)) void gate(const T *a, const T *b, T *out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float x = up(a[i]);
    down(x * sigmoid(x) * up(b[i]), out[i]);
  }
}

// With s = sigmoid(a): da = grad b s (1 + a (1 - s)), db = grad a s.
template <class T>
inline __attribute__((always_inline)) void gate_back(const T *a, const T *b, const T *grad, T *da, T *db, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float x = up(a[i]), g = up(grad[i]), s = sigmoid(x);
    down(g * up(b[i]) * s * (1.0f + x * (1.0f - s)), da[i]);
    down(g * x * s, db[i]);
  }
}

#define GATE(NAME, BACK, T)                                                                                            \
  EVERY_CPU void NAME(const T *a, const T *b, T *out, int64_t n) { gate(a, b, out, n); }                               \
  EVERY_CPU void BACK(const T *a, const T *b, const T *grad, T *da, T *db, int64_t n) {                                \
    gate_back(a, b, grad, da, db, n);                                                                                  \
  }
GATE(gate_bf16, gate_back_bf16, Bf16)
GATE(gate_f32, gate_back_f32, float)
#undef GATE

constexpr int64_t GRAIN = 1 << 14;

template <class T> T *pointer(const at::Tensor &x) { return static_cast<T *>(x.data_ptr()); }

struct Gate : torch::autograd::Function<Gate> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &a, const at::Tensor &b) {
    auto x = a.contiguous(), y = b.contiguous(), out = at::empty_like(x);
    at::parallel_for(0, x.numel(), GRAIN, [&](int64_t i, int64_t end) {
      if (x.scalar_type() == at::kBFloat16)
        gate_bf16(pointer<Bf16>(x) + i, pointer<Bf16>(y) + i, pointer<Bf16>(out) + i, end - i);
      else
        gate_f32(pointer<float>(x) + i, pointer<float>(y) + i, pointer<float>(out) + i, end - i);
    });
    context->save_for_backward({x, y});
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const auto &x = saved[0], &y = saved[1];
    auto grad = grads[0].contiguous(), dx = at::empty_like(x), dy = at::empty_like(y);
    at::parallel_for(0, x.numel(), GRAIN, [&](int64_t i, int64_t end) {
      if (x.scalar_type() == at::kBFloat16)
        gate_back_bf16(pointer<Bf16>(x) + i, pointer<Bf16>(y) + i, pointer<Bf16>(grad) + i, pointer<Bf16>(dx) + i,
                       pointer<Bf16>(dy) + i, end - i);
      else
        gate_back_f32(pointer<float>(x) + i, pointer<float>(y) + i, pointer<float>(grad) + i, pointer<float>(dx) + i,
                      pointer<float>(dy) + i, end - i);
    });
    return {dx, dy};
  }
};

} // namespace

extern "C" {

// silu(a) * b, both f32 or both bf16.
char *te_silu_times(at::Tensor *a, at::Tensor *b, at::Tensor **out) {
  return guarded([&] {
    TORCH_CHECK(a->sizes() == b->sizes() && a->scalar_type() == b->scalar_type() && a->device().is_cpu() &&
                    b->device().is_cpu() && (a->scalar_type() == at::kFloat || a->scalar_type() == at::kBFloat16),
                "silu_times wants two tensors of one shape, f32 or bf16, on the CPU");
    *out = new at::Tensor(Gate::apply(*a, *b));
  });
}
}
