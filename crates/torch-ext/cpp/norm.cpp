// The layer norm of an f32 residual stream, put out in the type that products compute in, with its gradient; what is added
// to the stream before is added in the same pass, and its gradient in the pass back.

#include "gpu.h"
#include "guarded.h"
#include "rows.h"
#include "tensor_rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

namespace {

// total = x + branch (where there is one; it may be x itself), out = (total - mean) / sqrt(var + eps) * weight + bias;
// statistics are kept where asked for.
template <class Branch, class Out>
INLINE void row(const float *x, const Branch *branch, float *total, const float *weight, const float *bias, Out *out,
                float *statistics, int64_t d, float eps) {
  if (branch) {
    APART for (int64_t i = 0; i < d; ++i) total[i] = x[i] + up(branch[i]);
    x = total;
  }
  float mean = sum(d, [&](int64_t i) { return x[i]; }) / static_cast<float>(d);
  float variance = sum(d, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / static_cast<float>(d);
  float scale = 1.0f / std::sqrt(variance + eps);
  APART for (int64_t i = 0; i < d; ++i) down((x[i] - mean) * scale * weight[i] + bias[i], out[i]);
  if (statistics) statistics[0] = mean, statistics[1] = scale;
}

// With g = grad * weight and n = (x - mean) * scale: dx = scale * (g - mean(g) - n * mean(g * n)), plus what comes down the
// stream; `narrow`, where it is there, gets it once more. The gradients of weight and bias are added to.
template <class Grad, class Narrow>
INLINE void row_back(const float *x, const Grad *grad, const float *stream, const float *weight, const float *statistics,
                     float *dx, Narrow *narrow, float *dweight, float *dbias, int64_t d) {
  float mean = statistics[0], scale = statistics[1];
  float g = sum(d, [&](int64_t i) { return up(grad[i]) * weight[i]; }) / static_cast<float>(d);
  float gn = sum(d, [&](int64_t i) { return up(grad[i]) * weight[i] * (x[i] - mean); }) * scale / static_cast<float>(d);
  APART for (int64_t i = 0; i < d; ++i) {
    float n = (x[i] - mean) * scale, y = up(grad[i]);
    dx[i] = scale * (y * weight[i] - g - n * gn);
    dweight[i] += y * n;
    dbias[i] += y;
  }
  if (stream)
    APART for (int64_t i = 0; i < d; ++i) dx[i] += stream[i];
  if (narrow)
    APART for (int64_t i = 0; i < d; ++i) down(dx[i], narrow[i]);
}

template <class Branch, class Out>
EVERY_CPU void norm_rows(const float *x, const Branch *branch, float *total, const float *weight, const float *bias, Out *out,
                         float *statistics, int64_t begin, int64_t end, int64_t d, float eps) {
  for (int64_t i = begin; i < end; ++i)
    row(x + i * d, branch ? branch + i * d : nullptr, total + i * d, weight, bias, out + i * d,
        statistics ? statistics + 2 * i : nullptr, d, eps);
}

template <class Grad>
EVERY_CPU void norm_rows_back(const float *x, const Grad *grad, const float *stream, const float *weight,
                              const float *statistics, float *dx, Bf16 *narrow, float *dweight, float *dbias, int64_t begin,
                              int64_t end, int64_t d) {
  for (int64_t i = begin; i < end; ++i)
    row_back(x + i * d, grad + i * d, stream ? stream + i * d : nullptr, weight, statistics + 2 * i, dx + i * d,
             narrow ? narrow + i * d : nullptr, dweight, dbias, d);
}

void check(const at::Tensor &x, const at::Tensor *branch, const at::Tensor &weight, const at::Tensor &bias) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous() && x.dim() > 0 && x.size(-1) > 0 &&
                  (x.is_cpu() || (x.is_cuda() && gpu::takes(x.size(-1)))),
              "the norm of a stream wants a contiguous f32 tensor, on a GPU of rows of vectors");
  for (const auto *p : {&weight, &bias})
    TORCH_CHECK(p->scalar_type() == at::kFloat && p->is_contiguous() && p->numel() == x.size(-1) &&
                    p->device() == x.device(),
                "the norm of a stream wants f32 weights of the width ", x.size(-1));
  if (branch)
    TORCH_CHECK(branch->sizes() == x.sizes() && branch->device() == x.device() &&
                    (branch->scalar_type() == at::kFloat || branch->scalar_type() == at::kBFloat16),
                "the norm of a stream: ", branch->sizes(), " can't be added to ", x.sizes());
}

// total = x + branch where there is one; the norm of it as bf16 or f32; [rows, 2] f32 into `statistics` where there is one.
at::Tensor forward_rows(const at::Tensor &x, const at::Tensor &branch, const at::Tensor &total, const at::Tensor &weight,
                        const at::Tensor &bias, double eps, bool bf16, at::Tensor *statistics) {
  int64_t d = x.size(-1), n = x.numel() / d;
  auto normed = at::empty(x.sizes(), x.options().dtype(bf16 ? at::kBFloat16 : at::kFloat));
  at::Tensor added;
  if (branch.defined()) {
    added = branch.contiguous();
    if (!bf16) added = added.to(at::kFloat);
  }
  if (x.is_cuda()) {
    gpu::norm(x, added, total, weight, bias, normed, statistics ? *statistics : at::Tensor(), static_cast<float>(eps));
    return normed;
  }
  bool narrow = added.defined() && added.scalar_type() == at::kBFloat16;
  const float *px = x.const_data_ptr<float>(), *pw = weight.const_data_ptr<float>(), *pb = bias.const_data_ptr<float>();
  float *pt = total.defined() ? total.data_ptr<float>() : nullptr;
  float *ps = statistics ? statistics->data_ptr<float>() : nullptr;
  const void *pa = added.defined() ? added.const_data_ptr() : nullptr;
  void *po = normed.data_ptr();
  at::parallel_for(0, n, 8, [&](int64_t begin, int64_t end) {
    auto e = static_cast<float>(eps);
    if (!bf16)
      norm_rows(px, static_cast<const float *>(pa), pt, pw, pb, static_cast<float *>(po), ps, begin, end, d, e);
    else if (narrow)
      norm_rows(px, static_cast<const Bf16 *>(pa), pt, pw, pb, static_cast<Bf16 *>(po), ps, begin, end, d, e);
    else
      norm_rows(px, static_cast<const float *>(pa), pt, pw, pb, static_cast<Bf16 *>(po), ps, begin, end, d, e);
  });
  return normed;
}

// Puts out the norm; and before it the sum, where there is a branch.
struct Norm : torch::autograd::Function<Norm> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext *context, const at::Tensor &x,
                                                const std::optional<at::Tensor> &branch, const at::Tensor &weight,
                                                const at::Tensor &bias, double eps, bool bf16) {
    auto statistics = at::empty({x.numel() / x.size(-1), 2}, x.options());
    auto total = branch ? at::empty_like(x) : at::Tensor();
    auto normed = forward_rows(x, branch.value_or(at::Tensor()), total, weight, bias, eps, bf16, &statistics);
    context->save_for_backward({branch ? total : x, weight, statistics});
    context->saved_data["narrow"] = branch && branch->scalar_type() == at::kBFloat16;
    context->set_materialize_grads(false);
    if (branch) return {total, normed};
    return {normed};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &statistics = saved[2];
    bool branched = grads.size() == 2;
    at::Tensor stream = branched ? grads[0] : at::Tensor(), grad = grads.back();
    at::Tensor none, narrow;
    if (!grad.defined()) return {stream, stream, none, none, none, none};
    grad = grad.contiguous();
    if (stream.defined()) stream = stream.contiguous();
    int64_t d = x.size(-1);
    auto dx = at::empty_like(x);
    if (context->saved_data["narrow"].toBool()) narrow = at::empty(x.sizes(), x.options().dtype(at::kBFloat16));
    at::Tensor sums; // of the weight, then of the bias
    if (x.is_cuda())
      sums = gpu::norm_back(x, grad, stream, weight, statistics, dx, narrow).flatten();
    else
      sums = on_cpu(x, grad, stream, weight, statistics, dx, narrow);
    auto dbranch = narrow.defined() ? narrow : branched ? dx : none;
    return {dx, dbranch, sums.narrow(0, 0, d), sums.narrow(0, d, d), none, none};
  }

  static at::Tensor on_cpu(const at::Tensor &x, const at::Tensor &grad, const at::Tensor &stream, const at::Tensor &weight,
                           const at::Tensor &statistics, const at::Tensor &dx, const at::Tensor &narrow) {
    int64_t d = x.size(-1), n = x.numel() / d;
    const float *px = x.const_data_ptr<float>(), *pw = weight.const_data_ptr<float>();
    const float *ps = statistics.const_data_ptr<float>(), *pr = stream.defined() ? stream.const_data_ptr<float>() : nullptr;
    float *pd = pointer<float>(dx);
    auto *pn = narrow.defined() ? pointer<Bf16>(narrow) : nullptr;
    return sums_over_rows(n, 2 * d, [&](int64_t first, int64_t last, float *sums) {
      if (grad.scalar_type() == at::kBFloat16)
        norm_rows_back(px, pointer<Bf16>(grad), pr, pw, ps, pd, pn, sums, sums + d, first, last, d);
      else
        norm_rows_back(px, pointer<float>(grad), pr, pw, ps, pd, pn, sums, sums + d, first, last, d);
    });
  }
};

} // namespace

extern "C" {

// x += branch (null: nothing is added), and the layer norm of x as bf16 or f32. Not differentiable.
char *te_add_layer_norm(at::Tensor *x, at::Tensor *branch, at::Tensor *weight, at::Tensor *bias, double eps, bool bf16,
                        at::Tensor **out) {
  return guarded([&] {
    check(*x, branch, *weight, *bias);
    *out = new at::Tensor(forward_rows(*x, branch ? *branch : at::Tensor(), *x, *weight, *bias, eps, bf16, nullptr));
  });
}

// The layer norm of x, or of x + branch, as bf16 or f32, differentiable; the sum into `total` (null without a branch).
char *te_layer_norm(at::Tensor *x, at::Tensor *branch, at::Tensor *weight, at::Tensor *bias, double eps, bool bf16,
                    at::Tensor **total, at::Tensor **out) {
  return guarded([&] {
    check(*x, branch, *weight, *bias);
    auto outs = Norm::apply(*x, branch ? std::optional(*branch) : std::nullopt, *weight, *bias, eps, bf16);
    if (branch) *total = new at::Tensor(outs[0]);
    *out = new at::Tensor(outs.back());
  });
}
}
