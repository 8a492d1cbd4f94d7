// Turns matrices of 16-bit or 32-bit elements, a tile of 8 x 8 at a time.

#pragma once

#include "rows.h"

#include <algorithm>

namespace {

constexpr int64_t SIDE = 8;

// Row i and row i + 4 interleaved.
template <class Row> INLINE void interleave(const Row (&from)[SIDE], Row (&to)[SIDE]) {
  for (int64_t i = 0; i < SIDE / 2; ++i) {
    to[2 * i] = __builtin_shufflevector(from[i], from[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
    to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
  }
}

// 8 x 8 elements, turned by three interleavings; `put(i, row)` takes the rows.
template <class T, class Put> INLINE void turn_tile(const T *from, int64_t from_row, Put &&put) {
  typedef T Row __attribute__((vector_size(SIDE * sizeof(T))));
  Row a[SIDE], b[SIDE];
  for (int64_t i = 0; i < SIDE; ++i) std::memcpy(&a[i], from + i * from_row, sizeof(Row));
  interleave(a, b);
  interleave(b, a);
  interleave(a, b);
  for (int64_t i = 0; i < SIDE; ++i) put(i, b[i]);
}

// Of a matrix [rows, columns]: [columns, rows]. Rows are `from_row` and `to_row` elements apart.
template <class T>
EVERY_CPU void turn(const T *from, int64_t from_row, T *to, int64_t to_row, int64_t rows, int64_t columns) {
  int64_t whole_rows = rows / SIDE * SIDE, whole_columns = columns / SIDE * SIDE;
  for (int64_t c = 0; c < whole_columns; c += SIDE)
    for (int64_t r = 0; r < whole_rows; r += SIDE)
      turn_tile(from + r * from_row + c, from_row,
                [&](int64_t i, const auto &row) { std::memcpy(to + (c + i) * to_row + r, &row, sizeof(row)); });
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) to[c * to_row + r] = from[r * from_row + c];
}

void turn(const Bf16 *from, int64_t from_row, Bf16 *to, int64_t to_row, int64_t rows, int64_t columns) {
  turn(reinterpret_cast<const uint16_t *>(from), from_row, reinterpret_cast<uint16_t *>(to), to_row, rows, columns);
}

} // namespace
