// A linear layer in bf16 on the CPU whose weight's gradient runs at the speed of its forward pass.
//
// dW = dY^T X reads dY against its grain, and oneDNN's product then has half its speed. With dY or X turned first, the
// narrower of the two, it has all of it, and turning costs a tenth of what is won.

#include "guarded.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstdint>
#include <optional>

namespace {

constexpr int64_t SIDE = 8;
typedef uint16_t Row __attribute__((vector_size(2 * SIDE)));

// Row i and row i + 4 interleaved.
inline __attribute__((always_inline)) void interleave(const Row (&from)[SIDE], Row (&to)[SIDE]) {
  for (int64_t i = 0; i < SIDE / 2; ++i) {
    to[2 * i] = __builtin_shufflevector(from[i], from[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
    to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
  }
}

// 8 x 8 elements: three interleavings turn them.
inline __attribute__((always_inline)) void turn_tile(const uint16_t *from, int64_t from_row, uint16_t *to, int64_t to_row) {
  Row a[SIDE], b[SIDE];
  for (int64_t i = 0; i < SIDE; ++i) std::memcpy(&a[i], from + i * from_row, sizeof(Row));
  interleave(a, b);
  interleave(b, a);
  interleave(a, b);
  for (int64_t i = 0; i < SIDE; ++i) std::memcpy(to + i * to_row, &b[i], sizeof(Row));
}

// Of a contiguous matrix [rows, columns] of 16-bit elements: [columns, rows], contiguous.
at::Tensor turned(const at::Tensor &x) {
  constexpr int64_t ROWS = 32, COLUMNS = 64; // of a part that stays in the first cache
  int64_t rows = x.size(0), columns = x.size(1);
  auto out = at::empty({columns, rows}, x.options());
  auto *from = static_cast<const uint16_t *>(x.const_data_ptr());
  auto *to = static_cast<uint16_t *>(out.data_ptr());
  at::parallel_for(0, (columns + COLUMNS - 1) / COLUMNS, 1, [&](int64_t begin, int64_t end) {
    int64_t right = std::min(columns, end * COLUMNS);
    for (int64_t left = begin * COLUMNS; left < right; left += COLUMNS)
      for (int64_t top = 0; top < rows; top += ROWS) {
        int64_t bottom = std::min(rows, top + ROWS), edge = std::min(right, left + COLUMNS);
        for (int64_t c = left; c < edge; c += SIDE)
          for (int64_t r = top; r < bottom; r += SIDE)
            if (c + SIDE <= edge && r + SIDE <= bottom)
              turn_tile(from + r * columns + c, columns, to + c * rows + r, rows);
            else
              for (int64_t i = r; i < std::min(r + SIDE, bottom); ++i)
                for (int64_t j = c; j < std::min(c + SIDE, edge); ++j) to[j * rows + i] = from[i * columns + j];
      }
  });
  return out;
}

// dY^T X of dY [N, out] and X [N, in]. Where both are equally wide nothing is won by turning one.
at::Tensor weight_gradient(const at::Tensor &dy, const at::Tensor &x) {
  if (dy.size(1) < x.size(1)) return at::mm(turned(dy.contiguous()), x);
  if (dy.size(1) > x.size(1)) return turned(at::mm(turned(x.contiguous()), dy));
  return at::mm(dy.t(), x);
}

struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &x, const at::Tensor &weight,
                            const std::optional<at::Tensor> &bias) {
    context->save_for_backward({x, weight});
    context->saved_data["bias"] = bias.has_value();
    return at::linear(x, weight, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1];
    auto dy = grads[0].reshape({-1, weight.size(0)});
    at::Tensor dx, dweight, dbias;
    if (context->needs_input_grad(0)) dx = at::mm(dy, weight).view(x.sizes());
    if (context->needs_input_grad(1)) dweight = weight_gradient(dy, x.reshape({-1, weight.size(1)}));
    if (context->saved_data["bias"].toBool() && context->needs_input_grad(2)) dbias = dy.sum(0);
    return {dx, dweight, dbias};
  }
};

} // namespace

extern "C" {

// x W^T + b in bf16, as autocast computes it; weights are f32 or bf16, and cast once.
char *te_linear(at::Tensor *x, at::Tensor *weight, at::Tensor *bias, at::Tensor **out) {
  return guarded([&] {
    // Without it casts would be kept beyond an update of the weights.
    TORCH_CHECK(at::autocast::is_autocast_enabled(at::kCPU), "linear wants autocast on the CPU");
    TORCH_CHECK(x->device().is_cpu() && weight->device().is_cpu() && weight->dim() == 2 && x->dim() > 0 &&
                    x->size(-1) == weight->size(1),
                "linear wants x [..., in] and a weight [out, in] on the CPU");
    auto cast = [](const at::Tensor &t) { return at::autocast::cached_cast(at::kBFloat16, t, at::kCPU); };
    auto added = bias ? std::optional(cast(*bias)) : std::nullopt;
    *out = new at::Tensor(Linear::apply(cast(*x), cast(*weight), added));
  });
}
}
