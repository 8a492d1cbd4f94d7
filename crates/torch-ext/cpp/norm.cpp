// The layer norm of an f32 residual stream, put out in the type that products compute in, with its gradient.

#include "guarded.h"
#include "rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

namespace {

// Sums run in so many lanes, so that a compiler may use vectors without reordering anything.
constexpr int64_t LANES = 16;

// The sum of f(i) over 0..d.
template <class F> inline __attribute__((always_inline)) float sum(int64_t d, F &&f) {
  float lanes[LANES] = {};
  int64_t whole = d / LANES * LANES;
  for (int64_t i = 0; i < whole; i += LANES)
    for (int64_t j = 0; j < LANES; ++j) lanes[j] += f(i + j);
  float all = 0;
  for (int64_t j = 0; j < LANES; ++j) all += lanes[j];
  for (int64_t i = whole; i < d; ++i) all += f(i);
  return all;
}

// x += branch (where there is one), out = (x - mean) / sqrt(var + eps) * weight + bias; statistics are kept where asked for.
template <class Branch, class Out>
inline __attribute__((always_inline)) void row(float *x, const Branch *branch, const float *weight, const float *bias,
                                               Out *out, float *statistics, int64_t d, float eps) {
  if (branch)
    for (int64_t i = 0; i < d; ++i) x[i] += up(branch[i]);
  float mean = sum(d, [&](int64_t i) { return x[i]; }) / static_cast<float>(d);
  float variance = sum(d, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / static_cast<float>(d);
  float scale = 1.0f / std::sqrt(variance + eps);
  for (int64_t i = 0; i < d; ++i) down((x[i] - mean) * scale * weight[i] + bias[i], out[i]);
  if (statistics) statistics[0] = mean, statistics[1] = scale;
}

// With g = grad * weight and n = (x - mean) * scale: dx = scale * (g - mean(g) - n * mean(g * n)); the gradients of weight
// and bias are added to.
template <class Grad>
inline __attribute__((always_inline)) void row_back(const float *x, const Grad *grad, const float *weight,
                                                    const float *statistics, float *dx, float *dweight, float *dbias,
                                                    int64_t d) {
  float mean = statistics[0], scale = statistics[1];
  float g = sum(d, [&](int64_t i) { return up(grad[i]) * weight[i]; }) / static_cast<float>(d);
  float gn = sum(d, [&](int64_t i) { return up(grad[i]) * weight[i] * (x[i] - mean); }) * scale / static_cast<float>(d);
  for (int64_t i = 0; i < d; ++i) {
    float n = (x[i] - mean) * scale, y = up(grad[i]);
    dx[i] = scale * (y * weight[i] - g - n * gn);
    dweight[i] += y * n;
    dbias[i] += y;
  }
}

#define ROWS(NAME, BRANCH, OUT)                                                                                        \
  EVERY_CPU void NAME(float *x, const BRANCH *branch, const float *weight, const float *bias, OUT *out,                \
                      float *statistics, int64_t begin, int64_t end, int64_t d, float eps) {                           \
    for (int64_t i = begin; i < end; ++i)                                                                              \
      row(x + i * d, branch ? branch + i * d : nullptr, weight, bias, out + i * d,                                     \
          statistics ? statistics + 2 * i : nullptr, d, eps);                                                          \
  }
ROWS(rows_bf16_bf16, Bf16, Bf16)
ROWS(rows_f32_bf16, float, Bf16)
ROWS(rows_f32_f32, float, float)
#undef ROWS

#define BACK(NAME, GRAD)                                                                                               \
  EVERY_CPU void NAME(const float *x, const GRAD *grad, const float *weight, const float *statistics, float *dx,       \
                      float *dweight, float *dbias, int64_t begin, int64_t end, int64_t d) {                           \
    for (int64_t i = begin; i < end; ++i)                                                                              \
      row_back(x + i * d, grad + i * d, weight, statistics + 2 * i, dx + i * d, dweight, dbias, d);                    \
  }
BACK(back_bf16, Bf16)
BACK(back_f32, float)
#undef BACK

void check(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias) {
  TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == at::kFloat && x.is_contiguous() && x.dim() > 0 && x.size(-1) > 0,
              "the norm of a stream wants a contiguous f32 tensor on the CPU");
  for (const auto *p : {&weight, &bias})
    TORCH_CHECK(p->scalar_type() == at::kFloat && p->is_contiguous() && p->numel() == x.size(-1),
                "the norm of a stream wants f32 weights of the width ", x.size(-1));
}

// x += branch where there is one; the norm of x as bf16 or f32; [rows, 2] f32 into `statistics` where there is one.
at::Tensor forward_rows(at::Tensor &x, const at::Tensor &branch, const at::Tensor &weight, const at::Tensor &bias,
                        double eps, bool bf16, at::Tensor *statistics) {
  int64_t d = x.size(-1), n = x.numel() / d;
  auto normed = at::empty(x.sizes(), x.options().dtype(bf16 ? at::kBFloat16 : at::kFloat));
  at::Tensor added;
  if (branch.defined()) {
    TORCH_CHECK(branch.sizes() == x.sizes(), "the norm of a stream: ", branch.sizes(), " is added to ", x.sizes());
    added = branch.contiguous();
    if (!bf16 || added.scalar_type() != at::kBFloat16) added = added.to(at::kFloat);
  }
  bool narrow = added.defined() && added.scalar_type() == at::kBFloat16;
  float *px = x.data_ptr<float>(), *ps = statistics ? statistics->data_ptr<float>() : nullptr;
  const float *pw = weight.const_data_ptr<float>(), *pb = bias.const_data_ptr<float>();
  const void *pa = added.defined() ? added.const_data_ptr() : nullptr;
  void *po = normed.data_ptr();
  at::parallel_for(0, n, 8, [&](int64_t begin, int64_t end) {
    auto e = static_cast<float>(eps);
    if (!bf16)
      rows_f32_f32(px, static_cast<const float *>(pa), pw, pb, static_cast<float *>(po), ps, begin, end, d, e);
    else if (narrow)
      rows_bf16_bf16(px, static_cast<const Bf16 *>(pa), pw, pb, static_cast<Bf16 *>(po), ps, begin, end, d, e);
    else
      rows_f32_bf16(px, static_cast<const float *>(pa), pw, pb, static_cast<Bf16 *>(po), ps, begin, end, d, e);
  });
  return normed;
}

struct Norm : torch::autograd::Function<Norm> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &x, const at::Tensor &weight,
                            const at::Tensor &bias, double eps, bool bf16) {
    auto statistics = at::empty({x.numel() / x.size(-1), 2}, x.options());
    auto same = x; // nothing is added, so that it isn't written
    auto out = forward_rows(same, {}, weight, bias, eps, bf16, &statistics);
    context->save_for_backward({x, weight, statistics});
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &statistics = saved[2];
    auto grad = grads[0].contiguous();
    int64_t d = x.size(-1), n = x.numel() / d;
    // Parts of a fixed number, summed in order: the gradient doesn't depend on the number of threads.
    int64_t parts = std::min<int64_t>(16, n), each = (n + parts - 1) / parts;
    auto dx = at::empty_like(x), partial = at::zeros({2, parts, d}, x.options());
    const float *px = x.const_data_ptr<float>(), *pw = weight.const_data_ptr<float>();
    const float *ps = statistics.const_data_ptr<float>();
    float *pd = dx.data_ptr<float>(), *pp = partial.data_ptr<float>();
    const void *pg = grad.const_data_ptr();
    bool bf16 = grad.scalar_type() == at::kBFloat16;
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        int64_t first = std::min(part * each, n), last = std::min(first + each, n);
        float *dw = pp + part * d, *db = pp + (parts + part) * d;
        if (bf16)
          back_bf16(px, static_cast<const Bf16 *>(pg), pw, ps, pd, dw, db, first, last, d);
        else
          back_f32(px, static_cast<const float *>(pg), pw, ps, pd, dw, db, first, last, d);
      }
    });
    auto sums = partial.sum(1);
    return {dx, sums[0], sums[1], at::Tensor(), at::Tensor()};
  }
};

} // namespace

extern "C" {

// x += branch (null: nothing is added), and the layer norm of x as bf16 or f32. Not differentiable.
char *te_add_layer_norm(at::Tensor *x, at::Tensor *branch, at::Tensor *weight, at::Tensor *bias, double eps, bool bf16,
                        at::Tensor **out) {
  return guarded([&] {
    check(*x, *weight, *bias);
    *out = new at::Tensor(forward_rows(*x, branch ? *branch : at::Tensor(), *weight, *bias, eps, bf16, nullptr));
  });
}

// The layer norm of x as bf16 or f32, differentiable.
char *te_layer_norm(at::Tensor *x, at::Tensor *weight, at::Tensor *bias, double eps, bool bf16, at::Tensor **out) {
  return guarded([&] {
    check(*x, *weight, *bias);
    *out = new at::Tensor(Norm::apply(*x, *weight, *bias, eps, bf16));
  });
}
}
