// SwiGLU's gate, silu(a) * b, and the layer norm that EVA-02 puts behind it, in one pass over memory, forward and backward.
// What lies between the two is not kept but computed again.

#include "gpu.h"
#include "guarded.h"
#include "rows.h"
#include "tensor_rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstddef>
#include <vector>

namespace {

INLINE float sigmoid(float x) {
  float bounded = x < -87.0f ? -87.0f : (x > 87.0f ? 87.0f : x); // NaN stays
  return 1.0f / (1.0f + exponential(-bounded));
}

// A layer norm's parameters; without, `weight` is null.
struct Affine {
  const float *weight, *bias;
  float eps;
};

// out = norm(silu(a) * b); `hidden` holds a row.
template <class T>
INLINE void gate(const T *a, const T *b, T *out, float *hidden, float *statistics, const Affine &norm, int64_t n) {
  if (!norm.weight) {
    APART for (int64_t i = 0; i < n; ++i) {
      float x = up(a[i]);
      down(x * sigmoid(x) * up(b[i]), out[i]);
    }
    return;
  }
  APART for (int64_t i = 0; i < n; ++i) {
    float x = up(a[i]);
    hidden[i] = x * sigmoid(x) * up(b[i]);
  }
  float mean = sum(n, [&](int64_t i) { return hidden[i]; }) / static_cast<float>(n);
  float variance = sum(n, [&](int64_t i) { return (hidden[i] - mean) * (hidden[i] - mean); }) / static_cast<float>(n);
  float scale = 1.0f / std::sqrt(variance + norm.eps);
  APART for (int64_t i = 0; i < n; ++i) down((hidden[i] - mean) * scale * norm.weight[i] + norm.bias[i], out[i]);
  statistics[0] = mean, statistics[1] = scale;
}

// With s = sigmoid(a) and h = a s b: da = dh b s (1 + a (1 - s)), db = dh a s; with n = (h - mean) scale and g = grad weight,
// dh = scale (g - mean(g) - n mean(g n)). The gradients of weight and bias are added to. `kept` holds two rows.
template <class T>
INLINE void gate_back(const T *a, const T *b, const T *grad, T *da, T *db, float *kept, const float *statistics,
                      const float *weight, float *dweight, float *dbias, int64_t n) {
  if (!weight) {
    APART for (int64_t i = 0; i < n; ++i) {
      float x = up(a[i]), g = up(grad[i]), s = sigmoid(x);
      down(g * up(b[i]) * s * (1.0f + x * (1.0f - s)), da[i]);
      down(g * x * s, db[i]);
    }
    return;
  }
  float mean = statistics[0], scale = statistics[1];
  float *sigmoids = kept, *normed = kept + n;
  APART for (int64_t i = 0; i < n; ++i) {
    float x = up(a[i]), s = sigmoid(x);
    sigmoids[i] = s;
    normed[i] = (x * s * up(b[i]) - mean) * scale;
  }
  float g = sum(n, [&](int64_t i) { return up(grad[i]) * weight[i]; }) / static_cast<float>(n);
  float gn = sum(n, [&](int64_t i) { return up(grad[i]) * weight[i] * normed[i]; }) / static_cast<float>(n);
  APART for (int64_t i = 0; i < n; ++i) {
    float x = up(a[i]), y = up(grad[i]), s = sigmoids[i], dh = scale * (y * weight[i] - g - normed[i] * gn);
    down(dh * up(b[i]) * s * (1.0f + x * (1.0f - s)), da[i]);
    down(dh * x * s, db[i]);
    dweight[i] += y * normed[i];
    dbias[i] += y;
  }
}

// Rows a, b are `step` elements apart; rows of the result n, of the gradients `step`.
template <class T>
EVERY_CPU void gate_rows(const T *a, const T *b, int64_t step, T *out, float *hidden, float *statistics, Affine norm,
                         int64_t begin, int64_t end, int64_t n) {
  for (int64_t i = begin; i < end; ++i)
    gate(a + i * step, b + i * step, out + i * n, hidden, statistics + 2 * i, norm, n);
}
template <class T>
EVERY_CPU void gate_rows_back(const T *a, const T *b, int64_t step, const T *grad, T *da, T *db, float *kept,
                              const float *statistics, const float *weight, float *dweight, float *dbias, int64_t begin,
                              int64_t end, int64_t n) {
  for (int64_t i = begin; i < end; ++i)
    gate_back(a + i * step, b + i * step, grad + i * n, da + i * step, db + i * step, kept, statistics + 2 * i, weight,
              dweight, dbias, n);
}

// Where rows of a and b begin: in one tensor [..., 2 n], or in two [..., n].
template <class T> struct Rows {
  T *a, *b;
  int64_t step;

  Rows(const at::Tensor &x, const at::Tensor &y, int64_t n)
      : a(pointer<T>(x)), b(y.defined() ? pointer<T>(y) : a + n), step(y.defined() ? n : 2 * n) {}
};

struct Gate : torch::autograd::Function<Gate> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &x,
                            const std::optional<at::Tensor> &y, const std::optional<at::Tensor> &weight,
                            const std::optional<at::Tensor> &bias, double eps) {
    int64_t n = x.size(-1) / (y ? 1 : 2), rows = x.numel() / x.size(-1);
    auto sizes = x.sizes().vec();
    sizes.back() = n;
    auto a = x.contiguous(), b = y ? y->contiguous() : at::Tensor(), out = at::empty(sizes, x.options());
    auto statistics = at::empty({weight ? rows : 0, 2}, x.options().dtype(at::kFloat));
    context->save_for_backward({a, b, weight.value_or(at::Tensor()), statistics});
    if (x.is_cuda()) {
      Rows<std::byte> from(a, b, n * x.element_size());
      gpu::gate(from.a, from.b, from.step / x.element_size(), out, statistics, weight.value_or(at::Tensor()),
                bias.value_or(at::Tensor()), static_cast<float>(eps));
      return out;
    }
    Affine norm{weight ? weight->const_data_ptr<float>() : nullptr, bias ? bias->const_data_ptr<float>() : nullptr,
                static_cast<float>(eps)};
    auto run = [&]<class T>(T *to) {
      Rows<T> from(a, b, n);
      at::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
        std::vector<float> hidden(n);
        gate_rows(from.a, from.b, from.step, to, hidden.data(), pointer<float>(statistics), norm, begin, end, n);
      });
    };
    if (x.scalar_type() == at::kBFloat16)
      run(pointer<Bf16>(out));
    else
      run(pointer<float>(out));
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const auto &a = saved[0], &b = saved[1], &weight = saved[2], &statistics = saved[3];
    auto grad = grads[0].contiguous();
    int64_t n = grad.size(-1), rows = grad.numel() / n;
    auto da = at::empty_like(a), db = b.defined() ? at::empty_like(b) : at::Tensor();
    if (a.is_cuda()) {
      int64_t bytes = n * a.element_size();
      Rows<std::byte> from(a, b, bytes), to(da, db, bytes);
      auto sums = gpu::gate_back(from.a, from.b, from.step / a.element_size(), grad, to.a, to.b, statistics, weight);
      if (!sums.defined()) return {da, db, at::Tensor(), at::Tensor(), at::Tensor()};
      return {da, db, sums[0], sums[1], at::Tensor()};
    }
    const float *pw = weight.defined() ? weight.const_data_ptr<float>() : nullptr;
    // Of the norm's weight, then of its bias.
    auto run = [&]<class T>(const T *pg) {
      Rows<T> from(a, b, n), to(da, db, n);
      return sums_over_rows(rows, pw ? 2 * n : 0, [&](int64_t first, int64_t last, float *sums) {
        std::vector<float> kept(2 * n);
        gate_rows_back(from.a, from.b, from.step, pg, to.a, to.b, kept.data(), pointer<float>(statistics), pw, sums,
                       pw ? sums + n : sums, first, last, n);
      });
    };
    auto sums = a.scalar_type() == at::kBFloat16 ? run(pointer<Bf16>(grad)) : run(pointer<float>(grad));
    if (!pw) return {da, db, at::Tensor(), at::Tensor(), at::Tensor()};
    return {da, db, sums.narrow(0, 0, n), sums.narrow(0, n, n), at::Tensor()};
  }
};

} // namespace

extern "C" {

// norm(silu(a) * b) of x = a, y = b [..., n], or x = [a b] [..., 2 n] where y is null; f32 or bf16. `weight` and `bias` [n] f32
// are the norm's; null: there is none.
char *te_gate(at::Tensor *x, at::Tensor *y, at::Tensor *weight, at::Tensor *bias, double eps, at::Tensor **out) {
  return guarded([&] {
    bool fit = (x->scalar_type() == at::kFloat || x->scalar_type() == at::kBFloat16) && x->dim() > 0 && x->numel() > 0 &&
               x->size(-1) % (y ? 1 : 2) == 0 && (x->is_cpu() || (x->is_cuda() && gpu::takes(x->size(-1) / (y ? 1 : 2))));
    if (y) fit = fit && y->sizes() == x->sizes() && y->scalar_type() == x->scalar_type() && y->device() == x->device();
    for (const auto *p : {weight, bias})
      if (p)
        fit = fit && p->scalar_type() == at::kFloat && p->is_contiguous() && p->numel() == x->size(-1) / (y ? 1 : 2) &&
              p->device() == x->device();
    TORCH_CHECK(fit && !weight == !bias,
                "a gate wants a and b of one shape, f32 or bf16, on a GPU of rows of vectors, and f32 parameters of their "
                "width");
    auto maybe = [](const at::Tensor *t) { return t ? std::optional(*t) : std::nullopt; };
    *out = new at::Tensor(Gate::apply(*x, maybe(y), maybe(weight), maybe(bias), eps));
  });
}
}
