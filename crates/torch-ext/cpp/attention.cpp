// Softmax attention on the CPU, in bf16 where there are tile registers and in f32, forward and backward, from queries, keys
// and values as products leave them. One head of one sample at a time stays in a core's second cache, scores and all; nothing
// is turned, scaled, rotated or stored on the way in passes of its own.
//
// Products are libtorch's `brgemm` (oneDNN): f32 sums of bf16, whose right-hand side has rows 2k and 2k + 1 interleaved, or
// of f32 as it lies.

#include "guarded.h"
#include "rows.h"
#include "tensor_rows.h"
#include "turn.h"

#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <type_traits>

namespace {

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// How products take numbers of type T: sizes are whole TILEs, a right-hand side is of `Right`, PER numbers each. So many
// queries are looked at TOGETHER, at most, that whatever is made of their scores to some 300 tokens stays in the cache.
template <class T> struct Operand;
template <> struct Operand<Bf16> {
  using Right = uint32_t;
  static constexpr int64_t TILE = 32, PER = 2, TOGETHER = 288;
};
template <> struct Operand<float> {
  using Right = float;
  static constexpr int64_t TILE = 8, PER = 1, TOGETHER = 128;
};

// Sizes; a "padded" one is whole tiles.
struct Sizes {
  int64_t samples, tokens, wanted, heads, width;
  int64_t padded_tokens, padded_width;
  int64_t block; // queries that are looked at together, whole tiles

  template <class T> static Sizes of(int64_t samples, int64_t tokens, int64_t wanted, int64_t heads, int64_t width) {
    constexpr int64_t TILE = Operand<T>::TILE, TOGETHER = Operand<T>::TOGETHER;
    int64_t parts = (wanted + TOGETHER - 1) / TOGETHER, block = round_up((wanted + parts - 1) / parts, TILE);
    return {samples, tokens, wanted, heads, width, round_up(tokens, TILE), round_up(width, TILE), block};
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(width)); }
};

// Memory that a thread works in, handed out in parts; without any it only counts.
class Room {
  std::byte *memory;
  int64_t taken = 0;

public:
  explicit Room(std::byte *memory) : memory(memory) {}
  int64_t bytes() const { return taken; }
  template <class T> T *take(int64_t n) {
    int64_t at = taken;
    taken += round_up(n * sizeof(T), 64);
    return memory ? reinterpret_cast<T *>(memory + at) : nullptr;
  }
};

// Rows [n, width] of one head, `step` apart, rotated where there are turns, as [padded_n, padded_width] with zeros around.
template <class T>
EVERY_CPU void gather(const T *from, int64_t step, const float *turns, T *to, int64_t n, int64_t padded_n, int64_t width,
                      int64_t padded_width) {
  // Rows lie too far apart for the processor to see them coming.
  constexpr int64_t AHEAD = 12, LINE = 64 / sizeof(T);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < width; j += LINE) __builtin_prefetch(from + std::min(i + AHEAD, n - 1) * step + j);
    T *row = to + i * padded_width;
    if (turns)
      rotate(from + i * step, row, turns + i * width, 1, width);
    else
      std::memcpy(row, from + i * step, width * sizeof(T));
    std::memset(row + width, 0, (padded_width - width) * sizeof(T));
  }
  std::memset(to + n * padded_width, 0, (padded_n - n) * padded_width * sizeof(T));
}

// The reverse, of f32 sums.
template <class T>
EVERY_CPU void scatter(const float *from, const float *turns, T *to, int64_t step, int64_t n, int64_t width,
                       int64_t padded_width) {
  for (int64_t i = 0; i < n; ++i)
    if (turns)
      rotate(from + i * padded_width, to + i * step, turns + i * width, -1, width);
    else
      APART for (int64_t j = 0; j < width; ++j) down(from[i * padded_width + j], to[i * step + j]);
}

INLINE float bounded_exponential(float x) { return exponential(x < -87.0f ? -87.0f : x); }

INLINE float largest(const float *x, int64_t n) {
  float lanes[LANES];
  std::fill_n(lanes, LANES, x[0]);
  int64_t whole = n / LANES * LANES;
  for (int64_t i = 0; i < whole; i += LANES)
    for (int64_t j = 0; j < LANES; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  float highest = x[0];
  for (int64_t j = 0; j < LANES; ++j) highest = lanes[j] > highest ? lanes[j] : highest;
  for (int64_t i = whole; i < n; ++i) highest = x[i] > highest ? x[i] : highest;
  return highest;
}

// e^(scale (s - max)) of each row's `n` scores, `padded` apart, its zeros behind, and `inverse`, 1 / sum; the row's log of
// the sum of e^(scale s) into `logs`. `p` may be the scores themselves.
template <class T>
EVERY_CPU void exponentials(float *scores, T *p, float *inverse, float *logs, float scale, int64_t rows, int64_t n,
                            int64_t padded) {
  for (int64_t i = 0; i < rows; ++i) {
    float *s = scores + i * padded;
    T *out = p + i * padded;
    float highest = largest(s, n);
    APART for (int64_t j = 0; j < n; ++j) {
      s[j] = bounded_exponential(scale * (s[j] - highest));
      down(s[j], out[j]);
    }
    float total = sum(n, [&](int64_t j) { return s[j]; });
    std::memset(out + n, 0, (padded - n) * sizeof(T));
    inverse[i] = 1.0f / total;
    logs[i] = scale * highest + std::log(total);
  }
}

// Weighted sums of values [rows, padded] times each row's `inverse`.
template <class T>
EVERY_CPU void finish(const float *sums, const float *inverse, T *out, int64_t step, int64_t rows, int64_t width,
                      int64_t padded) {
  for (int64_t i = 0; i < rows; ++i)
    APART for (int64_t j = 0; j < width; ++j) down(sums[i * padded + j] * inverse[i], out[i * step + j]);
}

// The sum of out * grad of each row.
template <class T>
EVERY_CPU void dots(const T *out, const T *grad, int64_t step, float *to, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i)
    to[i] = sum(width, [&](int64_t j) { return up(out[i * step + j]) * up(grad[i * step + j]); });
}

// Of scores s [keys, queries] and the gradients g of their softmax p: p = e^(scale s - log), and the gradient of s,
// scale p (g - dot). `p` may be `s`, and `ds` `g`.
template <class T>
EVERY_CPU void softmax_back(const float *s, const float *g, const float *logs, const float *dots, T *p, T *ds, float scale,
                            int64_t keys, int64_t queries) {
  for (int64_t k = 0; k < keys; ++k, s += queries, g += queries, p += queries, ds += queries)
    APART for (int64_t q = 0; q < queries; ++q) {
      float e = bounded_exponential(scale * s[q] - logs[q]), grad = g[q];
      down(e, p[q]);
      down(scale * e * (grad - dots[q]), ds[q]);
    }
}

// x [n, width] as the right-hand side of a product with its n rows.
EVERY_CPU void pair_rows(const Bf16 *x, uint32_t *out, int64_t n, int64_t width) {
  for (int64_t i = 0; i < n; i += 2)
    APART for (int64_t j = 0; j < width; ++j)
      out[i / 2 * width + j] = x[i * width + j].bits | static_cast<uint32_t>(x[(i + 1) * width + j].bits) << 16;
}
const uint32_t *by_rows(const Bf16 *x, uint32_t *room, int64_t n, int64_t width) {
  pair_rows(x, room, n, width);
  return room;
}
// f32 lies right already, and needs no room.
const float *by_rows(const float *x, float *, int64_t, int64_t) { return x; }

// x [n, width] as the right-hand side of a product with its columns, x turned: neighbours in a row of bf16 stay together.
template <class T> void by_columns(const T *x, typename Operand<T>::Right *out, int64_t n, int64_t width) {
  turn(reinterpret_cast<const uint32_t *>(x), width / Operand<T>::PER, reinterpret_cast<uint32_t *>(out), n, n,
       width / Operand<T>::PER);
}

// c [m, n] (+)= a [m, k] b [k, n]
void product(const Bf16 *a, const uint32_t *b, float *c, int64_t m, int64_t n, int64_t k, bool add) {
  at::native::cpublas::brgemm(m, n, k, k, n, n, add, reinterpret_cast<const at::BFloat16 *>(a),
                              reinterpret_cast<const at::BFloat16 *>(b), c);
}
void product(const float *a, const float *b, float *c, int64_t m, int64_t n, int64_t k, bool add) {
  at::native::cpublas::brgemm(m, n, k, k, n, n, add, a, b, c);
}

// Calls f(sample, head, parts) for each head of each sample, in threads, each with `Parts` of memory of its own.
template <class Parts, class F> void each_head(const Sizes &z, F &&f) {
  Room counting(nullptr);
  Parts(counting, z);
  at::parallel_for(0, z.samples * z.heads, 1, [&](int64_t begin, int64_t end) {
    auto memory = at::empty({counting.bytes()}, at::kByte);
    Room room(pointer<std::byte>(memory));
    Parts parts(room, z);
    for (int64_t i = begin; i < end; ++i) f(i / z.heads, i % z.heads, parts);
    at::native::cpublas::brgemm_release();
  });
}

const float *turns_of(const at::Tensor &turns, const Sizes &z, int64_t sample) {
  if (!turns.defined()) return nullptr;
  return turns.const_data_ptr<float>() + (turns.size(0) == 1 ? 0 : sample * z.tokens * z.width);
}

const float *from_row(const float *turns, int64_t row, int64_t width) { return turns ? turns + row * width : nullptr; }

// Queries, keys and values of one head, or their gradients: in one tensor side by side, or in three.
template <class T> struct Head {
  T *q, *k, *v;
  int64_t step; // from a token to the next

  Head(const std::vector<at::Tensor> &qkv, const Sizes &z, int64_t sample, int64_t head) {
    int64_t d = z.heads * z.width;
    step = qkv[0].size(2);
    auto part = [&](size_t i) {
      T *first = qkv.size() == 1 ? pointer<T>(qkv[0]) + static_cast<int64_t>(i) * d : pointer<T>(qkv[i]);
      return first + sample * z.tokens * step + head * z.width;
    };
    q = part(0), k = part(1), v = part(2);
  }
};

// What a head works with in the forward pass.
template <class T> struct Forward {
  using Right = typename Operand<T>::Right;
  T *rows, *queries, *p;
  Right *keys, *values; // by columns, by rows
  float *scores, *sums, *inverse;

  Forward(Room &room, const Sizes &z)
      : rows(room.take<T>(z.padded_tokens * z.padded_width)), queries(room.take<T>(z.block * z.padded_width)),
        keys(room.take<Right>(z.padded_tokens * z.padded_width / Operand<T>::PER)),
        values(room.take<Right>(z.padded_tokens * z.padded_width / Operand<T>::PER)),
        scores(room.take<float>(z.block * z.padded_tokens)), sums(room.take<float>(z.block * z.padded_width)),
        inverse(room.take<float>(z.block)) {
    if constexpr (std::is_same_v<T, float>)
      p = scores;
    else
      p = room.take<T>(z.block * z.padded_tokens);
  }
};

// [B, wanted, H W] of queries, keys and values; `logs` [B, H, wanted] gets the log of each softmax's denominator.
template <class T>
at::Tensor attend(const std::vector<at::Tensor> &qkv, const at::Tensor &turns, const Sizes &z, const at::Tensor &logs) {
  auto out = at::empty({z.samples, z.wanted, z.heads * z.width}, qkv[0].options());
  int64_t d = z.heads * z.width, tp = z.padded_tokens, wp = z.padded_width;
  auto *to = pointer<T>(out);
  each_head<Forward<T>>(z, [&](int64_t b, int64_t h, const Forward<T> &f) {
    Head<T> head(qkv, z, b, h);
    const float *table = turns_of(turns, z, b);
    gather(head.k, head.step, table, f.rows, z.tokens, tp, z.width, wp);
    by_columns(f.rows, f.keys, tp, wp);
    gather(head.v, head.step, nullptr, f.rows, z.tokens, tp, z.width, wp);
    const auto *values = by_rows(f.rows, f.values, tp, wp);
    for (int64_t first = 0; first < z.wanted; first += z.block) {
      int64_t m = std::min(z.block, z.wanted - first);
      gather(head.q + first * head.step, head.step, from_row(table, first, z.width), f.queries, m, m, z.width, wp);
      product(f.queries, f.keys, f.scores, m, tp, wp, false);
      float *log = pointer<float>(logs) + (b * z.heads + h) * z.wanted + first;
      exponentials(f.scores, f.p, f.inverse, log, z.scale(), m, z.tokens, tp);
      product(f.p, values, f.sums, m, wp, tp, false);
      finish(f.sums, f.inverse, to + (b * z.wanted + first) * d + h * z.width, d, m, z.width, wp);
    }
  });
  return out;
}

// What a head works with in the backward pass; `s`, `g` are the scores and the gradients of their softmax `p`, a row for
// each key.
template <class T> struct Backward {
  using Right = typename Operand<T>::Right;
  T *key_rows, *value_rows, *rows, *grad_rows, *p, *ds, *ds_turned;
  Right *keys, *queries, *queries_across, *grads, *grads_across; // by rows, and across by columns
  float *s, *g, *dq, *dk, *dv, *log, *dot;

  Backward(Room &room, const Sizes &z) {
    int64_t of_tokens = z.padded_tokens * z.padded_width, of_queries = z.block * z.padded_width;
    for (auto **part : {&key_rows, &value_rows}) *part = room.take<T>(of_tokens);
    for (auto **part : {&rows, &grad_rows}) *part = room.take<T>(of_queries);
    keys = room.take<Right>(of_tokens / Operand<T>::PER);
    for (auto **part : {&queries, &queries_across, &grads, &grads_across})
      *part = room.take<Right>(of_queries / Operand<T>::PER);
    for (auto **part : {&s, &g}) *part = room.take<float>(z.padded_tokens * z.block);
    ds_turned = room.take<T>(z.padded_tokens * z.block);
    if constexpr (std::is_same_v<T, float>)
      p = s, ds = g;
    else
      for (auto **part : {&p, &ds}) *part = room.take<T>(z.padded_tokens * z.block);
    for (auto **part : {&dk, &dv}) *part = room.take<float>(of_tokens);
    dq = room.take<float>(of_queries);
    for (auto **part : {&log, &dot}) *part = room.take<float>(z.block);
  }
};

// The gradients of queries, keys and values, as these lie. Scores are made again, turned: a row for each key.
template <class T>
std::vector<at::Tensor> attend_back(const std::vector<at::Tensor> &qkv, const at::Tensor &turns, const Sizes &z,
                                    const at::Tensor &logs, const at::Tensor &out, const at::Tensor &grad) {
  std::vector<at::Tensor> back;
  // Queries that nobody wanted have no gradient.
  for (const auto &x : qkv)
    back.push_back(z.wanted < z.tokens && back.empty() ? at::zeros(x.sizes(), x.options())
                                                       : at::empty(x.sizes(), x.options()));
  int64_t d = z.heads * z.width, tp = z.padded_tokens, wp = z.padded_width, mp = z.block;
  each_head<Backward<T>>(z, [&](int64_t b, int64_t h, const Backward<T> &f) {
    Head<T> head(qkv, z, b, h), to(back, z, b, h);
    const float *table = turns_of(turns, z, b);
    gather(head.k, head.step, table, f.key_rows, z.tokens, tp, z.width, wp);
    const auto *keys = by_rows(f.key_rows, f.keys, tp, wp);
    gather(head.v, head.step, nullptr, f.value_rows, z.tokens, tp, z.width, wp);
    std::memset(f.ds + z.tokens * mp, 0, (tp - z.tokens) * mp * sizeof(T));
    for (int64_t first = 0; first < z.wanted; first += mp) {
      int64_t m = std::min(mp, z.wanted - first), place = (b * z.wanted + first) * d + h * z.width;
      const float *turned = from_row(table, first, z.width);
      gather(head.q + first * head.step, head.step, turned, f.rows, m, mp, z.width, wp);
      gather(pointer<T>(grad) + place, d, nullptr, f.grad_rows, m, mp, z.width, wp);
      const auto *queries = by_rows(f.rows, f.queries, mp, wp), *grads = by_rows(f.grad_rows, f.grads, mp, wp);
      by_columns(f.rows, f.queries_across, mp, wp);
      by_columns(f.grad_rows, f.grads_across, mp, wp);
      // Queries of the padding have rows of zeros, and leave nothing anywhere.
      std::memset(f.log, 0, mp * sizeof(float));
      std::memset(f.dot, 0, mp * sizeof(float));
      std::memcpy(f.log, pointer<float>(logs) + (b * z.heads + h) * z.wanted + first, m * sizeof(float));
      dots(pointer<T>(out) + place, pointer<T>(grad) + place, d, f.dot, m, z.width);
      product(f.key_rows, f.queries_across, f.s, z.tokens, mp, wp, false);
      product(f.value_rows, f.grads_across, f.g, z.tokens, mp, wp, false);
      softmax_back(f.s, f.g, f.log, f.dot, f.p, f.ds, z.scale(), z.tokens, mp);
      product(f.p, grads, f.dv, z.tokens, wp, mp, first > 0);
      product(f.ds, queries, f.dk, z.tokens, wp, mp, first > 0);
      turn(f.ds, mp, f.ds_turned, tp, tp, mp);
      product(f.ds_turned, keys, f.dq, m, wp, tp, false);
      scatter(f.dq, turned, to.q + first * to.step, to.step, m, z.width, wp);
    }
    scatter(f.dk, table, to.k, to.step, z.tokens, z.width, wp);
    scatter(f.dv, nullptr, to.v, to.step, z.tokens, z.width, wp);
  });
  return back;
}

template <class T> struct Attention : torch::autograd::Function<Attention<T>> {
  static Sizes sizes(const std::vector<at::Tensor> &qkv, int64_t heads, int64_t wanted) {
    const auto &q = qkv[0];
    return Sizes::of<T>(q.size(0), q.size(1), wanted, heads, q.size(2) / (qkv.size() == 1 ? 3 : 1) / heads);
  }

  static at::Tensor forward(torch::autograd::AutogradContext *context, at::TensorList parts,
                            const std::optional<at::Tensor> &turns, int64_t heads, int64_t wanted) {
    auto qkv = parts.vec();
    Sizes z = sizes(qkv, heads, wanted);
    auto logs = at::empty({z.samples, z.heads, z.wanted}, qkv[0].options().dtype(at::kFloat));
    auto out = attend<T>(qkv, turns.value_or(at::Tensor()), z, logs);
    torch::autograd::variable_list saved{turns.value_or(at::Tensor()), logs, out};
    saved.insert(saved.end(), qkv.begin(), qkv.end());
    context->save_for_backward(saved);
    context->saved_data["heads"] = heads;
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const auto &turns = saved[0], &logs = saved[1], &out = saved[2];
    std::vector<at::Tensor> qkv(saved.begin() + 3, saved.end());
    Sizes z = sizes(qkv, context->saved_data["heads"].toInt(), out.size(1));
    auto back = attend_back<T>(qkv, turns, z, logs, out, grads[0].contiguous());
    back.resize(back.size() + 3);
    return back;
  }
};

} // namespace

extern "C" {

// Softmax attention of queries, keys and values, queries and keys turned by turns [B or 1, T, W] f32 (null: not), for the first
// `wanted` queries: [B, wanted, H W]. They are one tensor [B, T, 3 H W], or three [B, T, H W]; f32, or bf16.
char *te_attention(at::Tensor *const *qkv, int64_t n, at::Tensor *turns, int64_t heads, int64_t wanted, at::Tensor **out) {
  return guarded([&] {
    std::vector<at::Tensor> parts = list(qkv, n);
    TORCH_CHECK(n == 1 || n == 3, "attention: queries, keys and values are one tensor or three, not ", n);
    const auto &q = parts[0];
    int64_t columns = heads * (n == 1 ? 3 : 1);
    TORCH_CHECK(q.dim() == 3 && heads > 0 && q.size(2) % columns == 0 && q.size(2) / columns % 2 == 0 && q.numel() > 0 &&
                    wanted > 0 && wanted <= q.size(1),
                "attention: queries, keys and values of ", heads, " heads are ", n == 1 ? "[B, T, 3 H W]" : "[B, T, H W] each",
                ", W even, of at least ", wanted, " tokens, not ", q.sizes());
    auto kind = q.scalar_type();
    TORCH_CHECK(kind == at::kFloat || (kind == at::kBFloat16 && at::native::cpublas::could_pack(at::kBFloat16)),
                "attention wants f32, or bf16 on a CPU with tile registers, not ", kind);
    for (auto &part : parts) {
      TORCH_CHECK(part.device().is_cpu() && part.scalar_type() == kind && part.sizes() == q.sizes(),
                  "attention: queries, keys and values differ");
      part = part.contiguous();
    }
    if (turns)
      TORCH_CHECK(turns->dim() == 3 && turns->size(1) == q.size(1) && turns->size(2) == q.size(2) / columns &&
                      (turns->size(0) == 1 || turns->size(0) == q.size(0)) && turns->scalar_type() == at::kFloat &&
                      turns->is_contiguous() && turns->device().is_cpu(),
                  "attention: turns ", turns->sizes(), " don't fit queries, keys and values ", q.sizes());
    auto table = turns ? std::optional(*turns) : std::nullopt;
    at::TensorList all(parts);
    *out = new at::Tensor(kind == at::kFloat ? Attention<float>::apply(all, table, heads, wanted)
                                             : Attention<Bf16>::apply(all, table, heads, wanted));
  });
}
}
