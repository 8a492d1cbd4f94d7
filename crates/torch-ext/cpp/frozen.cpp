// Layers that only look forward: oneDNN's prepacked products with what follows them fused in, and the residual sum with the
// norm after it in one pass over memory. Each function returns nullptr or a message, as in torch_ext.cpp.

#include "guarded.h"
#include "rows.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/empty.h>

#include <cmath>

namespace {

// An operator that has no C++ header; called through the dispatcher, which checks the types of its arguments.
at::Tensor call(const char *name, const char *overload, torch::jit::Stack stack) {
  auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
  op.callBoxed(&stack);
  return stack.at(0).toTensor();
}

c10::IValue maybe(const at::Tensor *tensor) { return tensor ? c10::IValue(*tensor) : c10::IValue(); }

// One row: x += branch (where there is one), out = (x - mean) / sqrt(var + eps) * weight + bias. Sums run in 16 lanes, so
// that a compiler may use vectors without reordering anything.
template <class Branch, class Out>
inline __attribute__((always_inline)) void row(float *x, const Branch *branch, const float *weight, const float *bias,
                                               Out *out, int64_t d, float eps) {
  constexpr int64_t LANES = 16;
  float sums[LANES] = {}, squares[LANES] = {};
  int64_t whole = d / LANES * LANES;
  if (branch)
    for (int64_t i = 0; i < d; ++i) x[i] += up(branch[i]);
  for (int64_t i = 0; i < whole; i += LANES)
    for (int64_t j = 0; j < LANES; ++j) sums[j] += x[i + j];
  float mean = 0;
  for (int64_t j = 0; j < LANES; ++j) mean += sums[j];
  for (int64_t i = whole; i < d; ++i) mean += x[i];
  mean /= static_cast<float>(d);
  for (int64_t i = 0; i < whole; i += LANES)
    for (int64_t j = 0; j < LANES; ++j) squares[j] += (x[i + j] - mean) * (x[i + j] - mean);
  float variance = 0;
  for (int64_t j = 0; j < LANES; ++j) variance += squares[j];
  for (int64_t i = whole; i < d; ++i) variance += (x[i] - mean) * (x[i] - mean);
  float scale = 1.0f / std::sqrt(variance / static_cast<float>(d) + eps);
  for (int64_t i = 0; i < d; ++i) down((x[i] - mean) * scale * weight[i] + bias[i], out[i]);
}

#define ROWS(NAME, BRANCH, OUT)                                                                                        \
  EVERY_CPU void NAME(float *x, const BRANCH *branch, const float *weight, const float *bias, OUT *out, int64_t begin, \
                      int64_t end, int64_t d, float eps) {                                                             \
    for (int64_t i = begin; i < end; ++i)                                                                              \
      row(x + i * d, branch ? branch + i * d : nullptr, weight, bias, out + i * d, d, eps);                            \
  }
ROWS(rows_bf16_bf16, Bf16, Bf16)
ROWS(rows_f32_bf16, float, Bf16)
ROWS(rows_f32_f32, float, float)
#undef ROWS

} // namespace

extern "C" {

// Whether this CPU has tile registers for bf16 products, and the system lets this process use them.
bool te_cpu_has_tiles() {
  try {
    return at::cpu::init_amx();
  } catch (const std::exception &) {
    return false;
  }
}

// The weight [out, in] of a linear layer in the order in which oneDNN reads it.
char *te_pack_linear(at::Tensor *weight, at::Tensor **packed) {
  return guarded([&] {
    *packed = new at::Tensor(call("mkldnn::_reorder_linear_weight", "", {*weight, c10::IValue()}));
  });
}

// act(x W^T + b); `act` is one of oneDNN's ("none", "gelu", "swish").
char *te_packed_linear(at::Tensor *x, at::Tensor *packed, at::Tensor *bias, const char *act, at::Tensor **out) {
  return guarded([&] {
    std::string name = act;
    c10::List<std::optional<at::Scalar>> scalars;
    c10::IValue algorithm = name == "gelu" ? c10::IValue("none") : c10::IValue();
    *out = new at::Tensor(call("mkldnn::_linear_pointwise", "", {*x, *packed, maybe(bias), name, scalars, algorithm}));
  });
}

// other * (x W^T + b)
char *te_packed_linear_times(at::Tensor *x, at::Tensor *other, at::Tensor *packed, at::Tensor *bias, at::Tensor **out) {
  return guarded([&] {
    *out = new at::Tensor(
        call("mkldnn::_linear_pointwise", "binary", {*x, *other, *packed, maybe(bias), std::string("mul")}));
  });
}

// x += branch (null: nothing is added), and the layer norm of x as bf16 or f32. x is f32 and contiguous.
char *te_add_layer_norm(at::Tensor *x, at::Tensor *branch, at::Tensor *weight, at::Tensor *bias, double eps, bool bf16,
                        at::Tensor **out) {
  return guarded([&] {
    int64_t d = x->size(-1), n = d ? x->numel() / d : 0;
    TORCH_CHECK(x->device().is_cpu() && x->scalar_type() == at::kFloat && x->is_contiguous() && d > 0,
                "add_layer_norm wants a contiguous f32 tensor on the CPU");
    for (auto *p : {weight, bias})
      TORCH_CHECK(p->scalar_type() == at::kFloat && p->is_contiguous() && p->numel() == d,
                  "add_layer_norm wants f32 weights of the width ", d);
    auto normed = at::empty(x->sizes(), x->options().dtype(bf16 ? at::kBFloat16 : at::kFloat));
    at::Tensor added;
    if (branch) {
      TORCH_CHECK(branch->sizes() == x->sizes(), "add_layer_norm: ", branch->sizes(), " is added to ", x->sizes());
      added = branch->contiguous();
      if (!bf16 || added.scalar_type() != at::kBFloat16) added = added.to(at::kFloat);
    }
    float *px = x->data_ptr<float>();
    const float *pw = weight->data_ptr<float>(), *pb = bias->data_ptr<float>();
    const void *pa = branch ? added.const_data_ptr() : nullptr;
    bool narrow = branch && added.scalar_type() == at::kBFloat16;
    void *po = normed.data_ptr();
    at::parallel_for(0, n, 8, [&](int64_t begin, int64_t end) {
      auto e = static_cast<float>(eps);
      if (!bf16)
        rows_f32_f32(px, static_cast<const float *>(pa), pw, pb, static_cast<float *>(po), begin, end, d, e);
      else if (narrow)
        rows_bf16_bf16(px, static_cast<const Bf16 *>(pa), pw, pb, static_cast<Bf16 *>(po), begin, end, d, e);
      else
        rows_f32_bf16(px, static_cast<const float *>(pa), pw, pb, static_cast<Bf16 *>(po), begin, end, d, e);
    });
    *out = new at::Tensor(normed);
  });
}
}
