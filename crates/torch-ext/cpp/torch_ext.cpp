// The few parts of libtorch that tch does not reach. Each function returns nullptr on success or a message that the caller
// frees with te_free_message.

#include "guarded.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <torch/version.h>

namespace {

// Whether the elements of x are those of `other` place by place in memory; the stride of a single one says nothing.
bool lies_as(const at::Tensor &x, const at::Tensor &other) {
  bool same = x.sizes() == other.sizes();
  for (int64_t i = 0; same && i < x.dim(); ++i) same = x.size(i) == 1 || x.stride(i) == other.stride(i);
  return same;
}

} // namespace

extern "C" {

const char *te_version() { return TORCH_VERSION; }

void te_free_message(char *message) { free(message); }

// Turns autocast to bf16 on or off for a device type (0 CPU, 1 CUDA); says what it was before.
char *te_autocast_enter(int cuda, bool enabled, bool *was_enabled) {
  return guarded([&] {
    auto device = cuda ? at::kCUDA : at::kCPU;
    *was_enabled = at::autocast::is_autocast_enabled(device);
    at::autocast::set_autocast_dtype(device, at::kBFloat16);
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::increment_nesting();
  });
}

bool te_autocast_is_on(int cuda) { return at::autocast::is_autocast_enabled(cuda ? at::kCUDA : at::kCPU); }

// Undoes te_autocast_enter. The outermost exit drops the cached bf16 copies of the weights.
char *te_autocast_exit(int cuda, bool was_enabled) {
  return guarded([&] {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(cuda ? at::kCUDA : at::kCPU, was_enabled);
  });
}

// One fused AdamW step over n parameters, in place; nothing changes where *found_inf is 1 (it may be null).
char *te_fused_adamw(at::Tensor *const *params, at::Tensor *const *grads, at::Tensor *const *exp_avgs,
                     at::Tensor *const *exp_avg_sqs, at::Tensor *const *steps, int64_t n, double lr, double beta1,
                     double beta2, double weight_decay, double eps, at::Tensor *found_inf) {
  return guarded([&] {
    // The kernel for the CPU takes all of them to lie in memory as the parameters do, and looks at none.
    for (int64_t i = 0; i < n; ++i) {
      const auto &p = *params[i];
      for (const auto *other : {grads[i], exp_avgs[i], exp_avg_sqs[i]})
        TORCH_CHECK(lies_as(p, *other) && other->device() == p.device() && other->scalar_type() == p.scalar_type(),
                    "fused_adamw: a gradient or moment ", other->toString(), other->sizes(), " by strides ",
                    other->strides(), " is not as its parameter, ", p.toString(), p.sizes(), " by ", p.strides());
    }
    std::optional<at::Tensor> skip;
    if (found_inf) skip = *found_inf;
    at::_fused_adamw_(list(params, n), list(grads, n), list(exp_avgs, n), list(exp_avg_sqs, n), {}, list(steps, n), lr,
                      beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{}, skip);
  });
}

// The 2-norm over all tensors as one f32 scalar tensor on their device.
char *te_global_norm(at::Tensor *const *tensors, int64_t n, at::Tensor **norm) {
  return guarded([&] {
    auto norms = at::_foreach_norm(list(tensors, n), 2, at::kFloat);
    *norm = new at::Tensor(at::linalg_vector_norm(at::stack(norms), 2));
  });
}

// tensors[i] *= factor, a scalar tensor on the same device.
char *te_scale(at::Tensor *const *tensors, int64_t n, at::Tensor *factor) {
  return guarded([&] { at::_foreach_mul_(list(tensors, n), *factor); });
}

char *te_drop_grads(at::Tensor *const *params, int64_t n) {
  return guarded([&] {
    for (auto &param : list(params, n)) param.mutable_grad().reset();
  });
}

// averages[i] += weight * (values[i] - averages[i])
char *te_lerp(at::Tensor *const *averages, at::Tensor *const *values, int64_t n, double weight) {
  return guarded([&] { at::_foreach_lerp_(list(averages, n), list(values, n), weight); });
}
}
