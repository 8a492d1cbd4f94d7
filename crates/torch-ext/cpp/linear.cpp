// Linear layers of one input in bf16 on the CPU: one product for all, whose weights' gradient runs at the speed of its forward
// pass.
//
// dW = dY^T X reads dY against its grain, and oneDNN's product then has half its speed. With dY or X turned first, the
// narrower of the two, it has all of it, and turning costs a tenth of what is won.

#include "guarded.h"
#include "rows.h"
#include "tensor_rows.h"
#include "turn.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

// Parts of a matrix whose tiles stay in the first cache.
constexpr int64_t PART_ROWS = 32, PART_COLUMNS = 64;

// A part turned, into f32.
EVERY_CPU void turn_up(const Bf16 *from, int64_t from_row, float *to, int64_t to_row, int64_t rows, int64_t columns) {
  Bf16 turned[PART_COLUMNS * PART_ROWS];
  turn(from, from_row, turned, PART_ROWS, rows, columns);
  for (int64_t c = 0; c < columns; ++c)
    APART for (int64_t r = 0; r < rows; ++r) down(up(turned[c * PART_ROWS + r]), to[c * to_row + r]);
}

// A matrix [rows, columns] whose rows are `from_row` elements apart, turned: [columns, rows], contiguous.
template <class To, class Turn>
void in_parts(const Bf16 *from, int64_t from_row, To *to, int64_t rows, int64_t columns, Turn &&turn) {
  at::parallel_for(0, (columns + PART_COLUMNS - 1) / PART_COLUMNS, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * PART_COLUMNS; c < std::min(columns, end * PART_COLUMNS); c += PART_COLUMNS)
      for (int64_t r = 0; r < rows; r += PART_ROWS)
        turn(from + r * from_row + c, from_row, to + c * rows + r, rows, std::min(PART_ROWS, rows - r),
             std::min(PART_COLUMNS, columns - c));
  });
}

at::Tensor turned(const at::Tensor &x) {
  auto out = at::empty({x.size(1), x.size(0)}, x.options());
  in_parts(pointer<Bf16>(x), x.size(1), pointer<Bf16>(out), x.size(0), x.size(1),
           [](auto... part) { turn(part...); });
  return out;
}

// dY^T X of dY [N, out] and X [N, in], a f32 tensor for each of the layers, whose `widths` out is made of. Where both are
// equally wide nothing is won by turning one.
std::vector<at::Tensor> weight_gradients(const at::Tensor &dy, const at::Tensor &x, at::IntArrayRef widths) {
  int64_t in = x.size(1), out = dy.size(1), first = 0;
  bool turn_x = out > in;
  auto joint = turn_x ? at::mm(turned(x), dy) : at::mm(out < in ? turned(dy) : dy.t(), x);
  std::vector<at::Tensor> grads;
  for (int64_t width : widths) {
    auto grad = at::empty({width, in}, x.options().dtype(at::kFloat));
    if (turn_x)
      in_parts(pointer<Bf16>(joint) + first, out, pointer<float>(grad), in, width, turn_up);
    else
      grad.copy_(joint.narrow(0, first, width));
    grads.push_back(grad);
    first += width;
  }
  return grads;
}

EVERY_CPU void add_rows(const Bf16 *x, float *to, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    APART for (int64_t j = 0; j < columns; ++j) to[j] += up(x[i * columns + j]);
}

// The sum of x's [N, columns] rows, f32.
at::Tensor column_sums(const at::Tensor &x) {
  int64_t columns = x.size(1);
  return sums_over_rows(x.size(0), columns, [&](int64_t first, int64_t last, float *sums) {
    add_rows(pointer<Bf16>(x) + first * columns, sums, last - first, columns);
  });
}

struct Linear : torch::autograd::Function<Linear> {
  // `parameters` are the layers' weights and then their biases, where they have one.
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &x, at::TensorList parameters,
                            int64_t layers, int64_t biased) {
    std::vector<int64_t> widths;
    int64_t in = x.size(-1), out = 0;
    for (int64_t i = 0; i < layers; ++i) widths.push_back(parameters[i].size(0)), out += widths.back();
    auto weight = at::empty({out, in}, x.options());
    // Layers without a bias between others get zeros.
    auto bias = biased ? at::zeros({out}, x.options()) : at::Tensor();
    for (int64_t i = 0, first = 0, next = layers; i < layers; first += widths[i++]) {
      weight.narrow(0, first, widths[i]).copy_(parameters[i]);
      if (biased >> i & 1) bias.narrow(0, first, widths[i]).copy_(parameters[next++]);
    }
    context->save_for_backward({x, weight});
    context->saved_data["widths"] = widths;
    context->saved_data["biased"] = biased;
    return at::linear(x, weight, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1];
    auto widths = context->saved_data["widths"].toIntVector();
    int64_t biased = context->saved_data["biased"].toInt(), layers = static_cast<int64_t>(widths.size());
    auto dy = grads[0].reshape({-1, weight.size(0)}).contiguous();
    torch::autograd::variable_list back(1);
    if (context->needs_input_grad(0)) back[0] = at::mm(dy, weight).view(x.sizes());
    bool learning = false;
    for (int64_t i = 0; i < layers; ++i) learning = learning || context->needs_input_grad(1 + i);
    auto of_weights = std::vector<at::Tensor>(layers);
    if (learning) of_weights = weight_gradients(dy, x.reshape({-1, weight.size(1)}).contiguous(), widths);
    back.insert(back.end(), of_weights.begin(), of_weights.end());
    at::Tensor sums = biased ? column_sums(dy) : at::Tensor();
    for (int64_t i = 0, first = 0; i < layers; first += widths[i++])
      if (biased >> i & 1) back.push_back(sums.narrow(0, first, widths[i]).clone());
    back.resize(back.size() + 2);
    return back;
  }
};

} // namespace

extern "C" {

// [x W^T + b ...] of n layers in bf16, [..., out + out + ...]; weights and biases (null: none) are f32.
char *te_linear(at::Tensor *x, at::Tensor *const *weights, at::Tensor *const *biases, int64_t n, at::Tensor **out) {
  return guarded([&] {
    TORCH_CHECK(n > 0 && n < 64 && x->device().is_cpu() && x->dim() > 0 && x->numel() > 0 &&
                    (x->scalar_type() == at::kFloat || x->scalar_type() == at::kBFloat16),
                "linear wants x [..., in], f32 or bf16, on the CPU");
    std::vector<at::Tensor> parameters = list(weights, n);
    int64_t biased = 0;
    for (int64_t i = 0; i < n; ++i) {
      const auto &w = parameters[i];
      TORCH_CHECK(w.device().is_cpu() && w.scalar_type() == at::kFloat && w.dim() == 2 && w.size(1) == x->size(-1),
                  "linear: a weight ", w.sizes(), " doesn't fit x ", x->sizes());
      if (!biases[i]) continue;
      TORCH_CHECK(biases[i]->device().is_cpu() && biases[i]->scalar_type() == at::kFloat && biases[i]->dim() == 1 &&
                      biases[i]->size(0) == w.size(0),
                  "linear: a bias ", biases[i]->sizes(), " doesn't fit a weight ", w.sizes());
      parameters.push_back(*biases[i]);
      biased |= int64_t(1) << i;
    }
    auto narrow = at::autocast::cached_cast(at::kBFloat16, *x, at::kCPU);
    *out = new at::Tensor(Linear::apply(narrow, at::TensorList(parameters), n, biased));
  });
}
}
