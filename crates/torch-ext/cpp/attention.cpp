// Softmax attention in bf16 on CPUs with tile registers, forward and backward, from queries, keys and values as one product
// leaves them. One head of one sample at a time stays in a core's second cache, scores and all; nothing is turned, scaled,
// rotated or stored on the way in passes of its own.
//
// Products are libtorch's `brgemm` (oneDNN): f32 sums of bf16, whose right-hand side has rows 2k and 2k + 1 interleaved.

#include "guarded.h"
#include "rows.h"
#include "tensor_rows.h"
#include "turn.h"

#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Sizes; a "padded" one is whole tiles.
struct Sizes {
  int64_t samples, tokens, wanted, heads, width;
  int64_t padded_tokens, padded_width;
  int64_t block; // queries that are looked at together, whole tiles

  Sizes(int64_t samples, int64_t tokens, int64_t wanted, int64_t heads, int64_t width)
      : samples(samples), tokens(tokens), wanted(wanted), heads(heads), width(width),
        padded_tokens(round_up(tokens, 32)), padded_width(round_up(width, 32)) {
    constexpr int64_t TOGETHER = 288; // so that whatever is made of their scores to some 300 tokens stays in the cache
    int64_t parts = (wanted + TOGETHER - 1) / TOGETHER;
    block = round_up((wanted + parts - 1) / parts, 32);
  }
  int64_t row() const { return 3 * heads * width; } // of the joint product
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
EVERY_CPU void gather(const Bf16 *from, int64_t step, const float *turns, Bf16 *to, int64_t n, int64_t padded_n, int64_t width,
                      int64_t padded_width) {
  // Rows lie too far apart for the processor to see them coming.
  constexpr int64_t AHEAD = 12;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < width; j += 32) __builtin_prefetch(from + std::min(i + AHEAD, n - 1) * step + j);
    Bf16 *row = to + i * padded_width;
    if (turns)
      rotate(from + i * step, row, turns + i * width, 1, width);
    else
      std::memcpy(row, from + i * step, width * sizeof(Bf16));
    std::memset(row + width, 0, (padded_width - width) * sizeof(Bf16));
  }
  std::memset(to + n * padded_width, 0, (padded_n - n) * padded_width * sizeof(Bf16));
}

// The reverse, of f32 sums.
EVERY_CPU void scatter(const float *from, const float *turns, Bf16 *to, int64_t step, int64_t n, int64_t width,
                       int64_t padded_width) {
  for (int64_t i = 0; i < n; ++i)
    if (turns)
      rotate(from + i * padded_width, to + i * step, turns + i * width, -1, width);
    else
      APART for (int64_t j = 0; j < width; ++j) down(from[i * padded_width + j], to[i * step + j]);
}

// x [n, width] as the right-hand side of a product with its n rows.
EVERY_CPU void by_rows(const Bf16 *x, uint32_t *out, int64_t n, int64_t width) {
  for (int64_t i = 0; i < n; i += 2)
    APART for (int64_t j = 0; j < width; ++j)
      out[i / 2 * width + j] = x[i * width + j].bits | static_cast<uint32_t>(x[(i + 1) * width + j].bits) << 16;
}

// x [n, width] as the right-hand side of a product with its columns, x turned: neighbours in a row stay together.
EVERY_CPU void by_columns(const Bf16 *x, uint32_t *out, int64_t n, int64_t width) {
  turn_block(reinterpret_cast<const uint32_t *>(x), width / 2, out, n, n, width / 2);
}

// c [m, n] (+)= a [m, k] b [k, n]
void product(const Bf16 *a, const uint32_t *b, float *c, int64_t m, int64_t n, int64_t k, bool add) {
  at::native::cpublas::brgemm(m, n, k, k, n, n, add, reinterpret_cast<const at::BFloat16 *>(a),
                              reinterpret_cast<const at::BFloat16 *>(b), c);
}

INLINE float bounded_exponential(float x) { return exponential(x < -87.0f ? -87.0f : x); }

INLINE float largest(const float *x, int64_t n) {
  typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
  int64_t whole = n / LANES * LANES;
  Lanes all = Lanes{} + x[0], next;
  for (int64_t i = 0; i < whole; i += LANES) {
    std::memcpy(&next, x + i, sizeof(next));
    all = next > all ? next : all;
  }
  float highest = x[0];
  for (int64_t i = 0; i < LANES; ++i) highest = all[i] > highest ? all[i] : highest;
  for (int64_t i = whole; i < n; ++i) highest = x[i] > highest ? x[i] : highest;
  return highest;
}

// e^(scale (s - max)) of each row's `n` scores, `padded` apart, its zeros behind, and `inverse`, 1 / sum; the row's log of
// the sum of e^(scale s) into `logs`.
EVERY_CPU void exponentials(float *scores, Bf16 *p, float *inverse, float *logs, float scale, int64_t rows, int64_t n,
                            int64_t padded) {
  for (int64_t i = 0; i < rows; ++i) {
    float *s = scores + i * padded;
    Bf16 *out = p + i * padded;
    float highest = largest(s, n);
    APART for (int64_t j = 0; j < n; ++j) {
      s[j] = bounded_exponential(scale * (s[j] - highest));
      down(s[j], out[j]);
    }
    float total = sum(n, [&](int64_t j) { return s[j]; });
    std::memset(out + n, 0, (padded - n) * sizeof(Bf16));
    inverse[i] = 1.0f / total;
    logs[i] = scale * highest + std::log(total);
  }
}

// Weighted sums of values [rows, padded] times each row's `inverse`.
EVERY_CPU void finish(const float *sums, const float *inverse, Bf16 *out, int64_t step, int64_t rows, int64_t width,
                      int64_t padded) {
  for (int64_t i = 0; i < rows; ++i)
    APART for (int64_t j = 0; j < width; ++j) down(sums[i * padded + j] * inverse[i], out[i * step + j]);
}

// The sum of out * grad of each row.
EVERY_CPU void dots(const Bf16 *out, const Bf16 *grad, int64_t step, float *to, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i)
    to[i] = sum(width, [&](int64_t j) { return up(out[i * step + j]) * up(grad[i * step + j]); });
}

// Of scores s [keys, queries] and the gradients g of their softmax p: p = e^(scale s - log), and the gradient of s,
// scale p (g - dot).
EVERY_CPU void softmax_back(const float *s, const float *g, const float *logs, const float *dots, Bf16 *p, Bf16 *ds,
                            float scale, int64_t keys, int64_t queries) {
  for (int64_t k = 0; k < keys; ++k, s += queries, g += queries, p += queries, ds += queries)
    APART for (int64_t q = 0; q < queries; ++q) {
      float e = bounded_exponential(scale * s[q] - logs[q]);
      down(e, p[q]);
      down(scale * e * (g[q] - dots[q]), ds[q]);
    }
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

// What a head works with in the forward pass.
struct Forward {
  Bf16 *rows, *queries, *p;
  uint32_t *keys, *values; // by columns, by rows
  float *scores, *sums, *inverse;

  Forward(Room &room, const Sizes &z)
      : rows(room.take<Bf16>(z.padded_tokens * z.padded_width)), queries(room.take<Bf16>(z.block * z.padded_width)),
        p(room.take<Bf16>(z.block * z.padded_tokens)), keys(room.take<uint32_t>(z.padded_tokens * z.padded_width / 2)),
        values(room.take<uint32_t>(z.padded_tokens * z.padded_width / 2)),
        scores(room.take<float>(z.block * z.padded_tokens)), sums(room.take<float>(z.block * z.padded_width)),
        inverse(room.take<float>(z.block)) {}
};

// [B, wanted, H W] of qkv [B, T, 3 H W]; `logs` [B, H, wanted] gets the log of each softmax's denominator.
at::Tensor attend(const at::Tensor &qkv, const at::Tensor &turns, const Sizes &z, const at::Tensor &logs) {
  auto out = at::empty({z.samples, z.wanted, z.heads * z.width}, qkv.options());
  int64_t d = z.heads * z.width, tp = z.padded_tokens, wp = z.padded_width;
  auto *to = pointer<Bf16>(out);
  each_head<Forward>(z, [&](int64_t b, int64_t h, const Forward &f) {
    const Bf16 *q = pointer<Bf16>(qkv) + b * z.tokens * z.row() + h * z.width, *k = q + d, *v = k + d;
    const float *table = turns_of(turns, z, b);
    gather(k, z.row(), table, f.rows, z.tokens, tp, z.width, wp);
    by_columns(f.rows, f.keys, tp, wp);
    gather(v, z.row(), nullptr, f.rows, z.tokens, tp, z.width, wp);
    by_rows(f.rows, f.values, tp, wp);
    for (int64_t first = 0; first < z.wanted; first += z.block) {
      int64_t m = std::min(z.block, z.wanted - first);
      gather(q + first * z.row(), z.row(), from_row(table, first, z.width), f.queries, m, m, z.width, wp);
      product(f.queries, f.keys, f.scores, m, tp, wp, false);
      float *log = pointer<float>(logs) + (b * z.heads + h) * z.wanted + first;
      exponentials(f.scores, f.p, f.inverse, log, z.scale(), m, z.tokens, tp);
      product(f.p, f.values, f.sums, m, wp, tp, false);
      finish(f.sums, f.inverse, to + (b * z.wanted + first) * d + h * z.width, d, m, z.width, wp);
    }
  });
  return out;
}

// What a head works with in the backward pass; `s`, `g` are the scores and the gradients of their softmax `p`, a row for
// each key.
struct Backward {
  Bf16 *key_rows, *value_rows, *rows, *grad_rows, *p, *ds, *ds_turned;
  uint32_t *keys, *queries, *queries_across, *grads, *grads_across; // by rows, and across by columns
  float *s, *g, *dq, *dk, *dv, *log, *dot;

  Backward(Room &room, const Sizes &z) {
    int64_t of_tokens = z.padded_tokens * z.padded_width, of_queries = z.block * z.padded_width;
    for (auto **part : {&key_rows, &value_rows}) *part = room.take<Bf16>(of_tokens);
    for (auto **part : {&rows, &grad_rows}) *part = room.take<Bf16>(of_queries);
    for (auto **part : {&p, &ds, &ds_turned}) *part = room.take<Bf16>(z.padded_tokens * z.block);
    keys = room.take<uint32_t>(of_tokens / 2);
    for (auto **part : {&queries, &queries_across, &grads, &grads_across}) *part = room.take<uint32_t>(of_queries / 2);
    for (auto **part : {&s, &g}) *part = room.take<float>(z.padded_tokens * z.block);
    for (auto **part : {&dk, &dv}) *part = room.take<float>(of_tokens);
    dq = room.take<float>(of_queries);
    for (auto **part : {&log, &dot}) *part = room.take<float>(z.block);
  }
};

// The gradient of qkv. Scores are made again, turned: a row for each key.
at::Tensor attend_back(const at::Tensor &qkv, const at::Tensor &turns, const Sizes &z, const at::Tensor &logs,
                       const at::Tensor &out, const at::Tensor &grad) {
  // Queries that nobody wanted have no gradient.
  auto back = z.wanted < z.tokens ? at::zeros(qkv.sizes(), qkv.options()) : at::empty(qkv.sizes(), qkv.options());
  int64_t d = z.heads * z.width, tp = z.padded_tokens, wp = z.padded_width, mp = z.block;
  auto *to = pointer<Bf16>(back);
  each_head<Backward>(z, [&](int64_t b, int64_t h, const Backward &f) {
    int64_t at = b * z.tokens * z.row() + h * z.width;
    const Bf16 *q = pointer<Bf16>(qkv) + at, *k = q + d, *v = k + d;
    const float *table = turns_of(turns, z, b);
    gather(k, z.row(), table, f.key_rows, z.tokens, tp, z.width, wp);
    by_rows(f.key_rows, f.keys, tp, wp);
    gather(v, z.row(), nullptr, f.value_rows, z.tokens, tp, z.width, wp);
    std::memset(f.ds + z.tokens * mp, 0, (tp - z.tokens) * mp * sizeof(Bf16));
    for (int64_t first = 0; first < z.wanted; first += mp) {
      int64_t m = std::min(mp, z.wanted - first), place = (b * z.wanted + first) * d + h * z.width;
      const float *turned = from_row(table, first, z.width);
      gather(q + first * z.row(), z.row(), turned, f.rows, m, mp, z.width, wp);
      gather(pointer<Bf16>(grad) + place, d, nullptr, f.grad_rows, m, mp, z.width, wp);
      by_rows(f.rows, f.queries, mp, wp);
      by_columns(f.rows, f.queries_across, mp, wp);
      by_rows(f.grad_rows, f.grads, mp, wp);
      by_columns(f.grad_rows, f.grads_across, mp, wp);
      // Queries of the padding have rows of zeros, and leave nothing anywhere.
      std::memset(f.log, 0, mp * sizeof(float));
      std::memset(f.dot, 0, mp * sizeof(float));
      std::memcpy(f.log, pointer<float>(logs) + (b * z.heads + h) * z.wanted + first, m * sizeof(float));
      dots(pointer<Bf16>(out) + place, pointer<Bf16>(grad) + place, d, f.dot, m, z.width);
      product(f.key_rows, f.queries_across, f.s, z.tokens, mp, wp, false);
      product(f.value_rows, f.grads_across, f.g, z.tokens, mp, wp, false);
      softmax_back(f.s, f.g, f.log, f.dot, f.p, f.ds, z.scale(), z.tokens, mp);
      product(f.p, f.grads, f.dv, z.tokens, wp, mp, first > 0);
      product(f.ds, f.queries, f.dk, z.tokens, wp, mp, first > 0);
      turn(f.ds, mp, f.ds_turned, tp, tp, mp);
      product(f.ds_turned, f.keys, f.dq, m, wp, tp, false);
      scatter(f.dq, turned, to + at + first * z.row(), z.row(), m, z.width, wp);
    }
    scatter(f.dk, table, to + at + d, z.row(), z.tokens, z.width, wp);
    scatter(f.dv, nullptr, to + at + 2 * d, z.row(), z.tokens, z.width, wp);
  });
  return back;
}

struct Attention : torch::autograd::Function<Attention> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &qkv,
                            const std::optional<at::Tensor> &turns, int64_t heads, int64_t wanted) {
    Sizes z(qkv.size(0), qkv.size(1), wanted, heads, qkv.size(2) / 3 / heads);
    auto logs = at::empty({z.samples, z.heads, z.wanted}, qkv.options().dtype(at::kFloat));
    auto out = attend(qkv, turns.value_or(at::Tensor()), z, logs);
    context->save_for_backward({qkv, turns.value_or(at::Tensor()), logs, out});
    context->saved_data["heads"] = heads;
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    const auto &qkv = saved[0], &out = saved[3];
    int64_t heads = context->saved_data["heads"].toInt();
    Sizes z(qkv.size(0), qkv.size(1), out.size(1), heads, qkv.size(2) / 3 / heads);
    return {attend_back(qkv, saved[1], z, saved[2], out, grads[0].contiguous()), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

} // namespace

extern "C" {

// Softmax attention of qkv [B, T, 3 H W] bf16, queries and keys turned by turns [B or 1, T, W] f32 (null: not), for the first
// `wanted` queries: [B, wanted, H W].
char *te_attention(at::Tensor *qkv, at::Tensor *turns, int64_t heads, int64_t wanted, at::Tensor **out) {
  return guarded([&] {
    TORCH_CHECK(qkv->dim() == 3 && heads > 0 && qkv->size(2) % (3 * heads) == 0 && qkv->size(2) / 3 / heads % 2 == 0 &&
                    qkv->numel() > 0 && wanted > 0 && wanted <= qkv->size(1),
                "attention: queries, keys and values of ", heads, " heads are [B, T, 3 H W], not ", qkv->sizes());
    TORCH_CHECK(qkv->device().is_cpu() && qkv->scalar_type() == at::kBFloat16 &&
                    at::native::cpublas::could_pack(at::kBFloat16),
                "attention wants bf16 on a CPU with tile registers");
    if (turns)
      TORCH_CHECK(turns->dim() == 3 && turns->size(1) == qkv->size(1) && turns->size(2) == qkv->size(2) / 3 / heads &&
                      (turns->size(0) == 1 || turns->size(0) == qkv->size(0)) && turns->scalar_type() == at::kFloat &&
                      turns->is_contiguous() && turns->device().is_cpu(),
                  "attention: turns ", turns->sizes(), " don't fit queries, keys and values ", qkv->sizes());
    auto table = turns ? std::optional(*turns) : std::nullopt;
    *out = new at::Tensor(Attention::apply(qkv->contiguous(), table, heads, wanted));
  });
}
}
