// Rotary embedding of queries and keys in one pass over memory, forward and backward.

#include "gpu.h"
#include "guarded.h"
#include "rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

// Strides, in elements, of tokens and heads.
struct Steps {
  int64_t token, head;
};

template <class T>
EVERY_CPU void rotate_rows(const T *from, Steps fs, T *to, Steps ts, const float *turns, float sign, int64_t tokens,
                           int64_t heads, int64_t width) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h)
      rotate(from + t * fs.token + h * fs.head, to + t * ts.token + h * ts.head, turns + t * width, sign, width);
}

// Of every sample of `from`, whose tokens and heads are dimensions (1, 2) or (2, 1), into `to`.
void turn_all(const at::Tensor &from, at::Tensor &to, const at::Tensor &turns, float sign, bool heads_first_from) {
  int64_t t_from = heads_first_from ? 2 : 1, t_to = 3 - t_from;
  int64_t samples = from.size(0), tokens = from.size(t_from), heads = from.size(3 - t_from), width = from.size(3);
  Steps fs{from.stride(t_from), from.stride(3 - t_from)}, ts{to.stride(t_to), to.stride(3 - t_to)};
  bool bf16 = from.scalar_type() == at::kBFloat16;
  const float *table = turns.const_data_ptr<float>();
  int64_t each = turns.size(0) == 1 ? 0 : tokens * width;
  const void *pf = from.const_data_ptr();
  void *pt = to.data_ptr();
  at::parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t f = b * from.stride(0), t = b * to.stride(0);
      if (bf16)
        rotate_rows(static_cast<const Bf16 *>(pf) + f, fs, static_cast<Bf16 *>(pt) + t, ts, table + b * each, sign, tokens,
                    heads, width);
      else
        rotate_rows(static_cast<const float *>(pf) + f, fs, static_cast<float *>(pt) + t, ts, table + b * each, sign, tokens,
                    heads, width);
    }
  });
}

struct Rotate : torch::autograd::Function<Rotate> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &x, const at::Tensor &turns) {
    auto from = x.stride(3) == 1 ? x : x.contiguous();
    int64_t tokens = x.size(1), heads = x.size(2), width = x.size(3);
    context->save_for_backward({turns});
    if (x.is_cuda()) {
      // A GPU's attention reads heads as they lie, and puts out the same order.
      auto out = at::empty_strided({x.size(0), heads, tokens, width}, {tokens * heads * width, width, heads * width, 1},
                                   x.options());
      gpu::rotate(from, out.transpose(1, 2), turns, 1);
      return out;
    }
    auto out = at::empty({x.size(0), heads, tokens, width}, x.options());
    turn_all(from, out, turns, 1, false);
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list grads) {
    auto grad = grads[0].stride(3) == 1 ? grads[0] : grads[0].contiguous();
    auto out = at::empty({grad.size(0), grad.size(2), grad.size(1), grad.size(3)}, grad.options());
    auto turns = context->get_saved_variables()[0];
    if (grad.is_cuda())
      gpu::rotate(grad.transpose(1, 2), out, turns, -1);
    else
      turn_all(grad, out, turns, -1, true);
    return {out, at::Tensor()};
  }
};

} // namespace

extern "C" {

// x [B, T, H, W] of f32 or bf16, turned by turns [B or 1, T, W] f32 (cos, sin, cos, ...): [B, H, T, W], on a GPU in x's order.
char *te_rotate(at::Tensor *x, at::Tensor *turns, at::Tensor **out) {
  return guarded([&] {
    TORCH_CHECK(x->dim() == 4 && turns->dim() == 3 && x->size(3) % 2 == 0, "rotate: x is [B, T, H, W], turns [B, T, W]");
    TORCH_CHECK(turns->size(1) == x->size(1) && turns->size(2) == x->size(3) &&
                    (turns->size(0) == 1 || turns->size(0) == x->size(0)),
                "rotate: turns ", turns->sizes(), " don't fit x ", x->sizes());
    TORCH_CHECK((x->is_cpu() || x->is_cuda()) && turns->device() == x->device() && turns->scalar_type() == at::kFloat &&
                    turns->is_contiguous() && (x->scalar_type() == at::kFloat || x->scalar_type() == at::kBFloat16),
                "rotate wants f32 or bf16, and f32 turns on the same device");
    *out = new at::Tensor(Rotate::apply(*x, *turns));
  });
}
}
