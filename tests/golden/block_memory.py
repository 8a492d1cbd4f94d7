"""Bytes that autograd saves of one token in a block of UTA-B/14, on the CPU: `python block_memory.py` prints, for bf16 and
f32, all of them and those of statistics, which are expected values of crates/uta-model/src/nets/vit/memory.rs.

Made with PyTorch 2.13.0.
"""

import torch
import torch.nn.functional as F

B, T, D, HIDDEN, H = 2, 155, 768, 2048, 12


class HeadsFirst(torch.autograd.Function):
    """Stands for the rotary embedding in one pass: a new tensor, and nothing saved but the shared table."""

    @staticmethod
    def forward(_, x):
        return x.transpose(1, 2).contiguous()

    @staticmethod
    def backward(_, grad):
        return grad.transpose(1, 2)


def saved(bf16: bool) -> tuple[int, int]:
    """Bytes a token: in all, and those of statistics."""

    def parameter(*shape):
        return torch.randn(*shape).mul_(0.02).requires_grad_()

    q, k, v, proj = (parameter(D, D) for _ in range(4))
    w1, w2, w3 = parameter(HIDDEN, D), parameter(HIDDEN, D), parameter(D, HIDDEN)
    bias, wide = parameter(D), parameter(HIDDEN)
    weights = {t.data_ptr() for t in (q, k, v, proj, w1, w2, w3, bias, wide)}
    storages = {}

    def pack(t):
        # Tokens come first or are all there is; a weight's bf16 copy has as many rows or columns as the weight.
        is_weight = t.data_ptr() in weights or tuple(sorted(t.shape)) in {(D, D), (D, HIDDEN)}
        if not is_weight and t.numel() >= B * T:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    x = torch.randn(B, T, D, requires_grad=True) * 1.0
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = F.layer_norm(x, (D,), bias, bias)
        heads = [F.linear(y, w, bias).unflatten(-1, (H, -1)) for w in (q, k, v)]
        a, b, c = HeadsFirst.apply(heads[0]), HeadsFirst.apply(heads[1]), heads[2].transpose(1, 2)
        if bf16:
            scores = (a * (D / H) ** -0.5).matmul(b.transpose(-2, -1))
            out = scores.softmax(-1, dtype=scores.dtype).matmul(c)
        else:
            out = F.scaled_dot_product_attention(a, b, c)
        x = x + F.linear(out.transpose(1, 2).flatten(2, 3), proj, bias)
        y = F.layer_norm(x, (D,), bias, bias)
        hidden = F.linear(y, w2, wide) * F.silu(F.linear(y, w1, wide))
        x = x + F.linear(F.layer_norm(hidden, (HIDDEN,), wide, wide), w3, bias)
    sizes = [storage.nbytes() // (B * T) for storage in storages.values()]
    return sum(sizes), sum(size for size in sizes if size <= 4 * H)


for bf16 in (True, False):
    print("bf16" if bf16 else "f32", *saved(bf16))
