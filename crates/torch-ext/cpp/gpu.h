// Loops over rows on a GPU (kernels.cu): the counterparts of those for the CPU, for contiguous tensors. Throw where
// `gpu::compiles()` is false, and in builds without CUDA.

#pragma once

#include <ATen/core/Tensor.h>

namespace gpu {

// Whether kernels can be compiled here.
bool compiles();

// Rows of `width` numbers are made of whole vectors, and fit in one block.
inline bool takes(int64_t width) { return width % 4 == 0 && width > 0 && width <= 16384; }

// total = x + branch where there is one; the layer norm of it into `out`, its moments [rows, 2] into `statistics` if defined.
void norm(const at::Tensor &x, const at::Tensor &branch, const at::Tensor &total, const at::Tensor &weight,
          const at::Tensor &bias, const at::Tensor &out, const at::Tensor &statistics, float eps);

// dx, and `narrow` where it is defined; returns [2, D]: the gradients of weight and bias.
at::Tensor norm_back(const at::Tensor &x, const at::Tensor &grad, const at::Tensor &stream, const at::Tensor &weight,
                     const at::Tensor &statistics, const at::Tensor &dx, const at::Tensor &narrow);

// norm(silu(a) * b) of rows that begin `step` numbers apart; without a norm where `weight` is undefined.
void gate(const void *a, const void *b, int64_t step, const at::Tensor &out, const at::Tensor &statistics,
          const at::Tensor &weight, const at::Tensor &bias, float eps);

// da and db, whose rows are as a's and b's; returns [2, D] as norm_back, undefined without a norm.
at::Tensor gate_back(const void *a, const void *b, int64_t step, const at::Tensor &grad, void *da, void *db,
                     const at::Tensor &statistics, const at::Tensor &weight);

// Pairs of `from` [samples, tokens, heads, width] turned into `to`; both have strides of their own.
void rotate(const at::Tensor &from, const at::Tensor &to, const at::Tensor &turns, float sign);

} // namespace gpu
