// What loops over the rows of tensors share: pointers to their numbers, and sums that don't depend on threads.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace {

template <class T> T *pointer(const at::Tensor &x) { return static_cast<T *>(x.data_ptr()); }

// Sums over `rows` rows, f32 [columns]: `add(first, last, sums)` adds those of the rows from `first` to `last`. Parts of a
// fixed number are summed in order, so that the sums don't depend on the number of threads.
template <class Add> at::Tensor sums_over_rows(int64_t rows, int64_t columns, Add &&add) {
  int64_t parts = std::clamp<int64_t>(rows, 1, 16), each = (rows + parts - 1) / parts;
  auto partial = at::zeros({parts, columns}, at::kFloat);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      add(std::min(part * each, rows), std::min((part + 1) * each, rows), pointer<float>(partial) + part * columns);
  });
  return partial.sum(0);
}

} // namespace
