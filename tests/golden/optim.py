"""Reference values of the optimiser, from PyTorch: `python optim.py` rewrites optim.safetensors beside it.

Made with torch 2.13.0 on the CPU, in float32, one tensor at a time (foreach and fused off). Ten steps of clip_grad_norm_
and AdamW, with EVA's groups: no decay for vectors, position embeddings and [CLS], and a rate for each layer
(layer_decay 0.7, two blocks). The gradients are random; about half of the steps are clipped. The file holds

    param.NAME    before the first step
    grad.I.NAME   gradient of step I
    norm          [10], the global norm before clipping
    lr            [10], the rate of each step before layer decay
    after.I.NAME  the parameters after step I, for I in 0 and 9
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
STEPS, CLIP, LAYER_DECAY = 10, 3.0, 0.7
# name: (shape, layer from 0 to depth + 1, decays)
PARAMETERS = {
    "visual.patch_embed.proj.weight": ((4, 3, 2, 2), 0, True),
    "visual.patch_embed.proj.bias": ((4,), 0, False),
    "visual.pos_embed": ((1, 5, 4), 0, False),
    "visual.cls_token": ((1, 1, 4), 0, False),
    "visual.blocks.0.attn.q_proj.weight": ((4, 4), 1, True),
    "visual.blocks.0.attn.q_bias": ((4,), 1, False),
    "visual.blocks.1.mlp.w1.weight": ((6, 4), 2, True),
    "visual.blocks.1.mlp.w1.bias": ((6,), 2, False),
    "visual.norm.weight": ((4,), 3, False),
    "visual.head.weight": ((8, 4), 3, True),
}


def main():
    torch.manual_seed(0)
    parameters = {name: torch.nn.Parameter(torch.randn(shape)) for name, (shape, *_) in PARAMETERS.items()}
    groups = [
        {"params": [parameters[name]], "weight_decay": 0.05 if decays else 0.0, "scale": LAYER_DECAY ** (3 - layer)}
        for name, (_, layer, decays) in PARAMETERS.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6, foreach=False, fused=False)
    out = {f"param.{name}": p.detach().clone() for name, p in parameters.items()}
    norms, rates = [], []
    for step in range(STEPS):
        lr = 1.5e-3 * (step + 1) / STEPS
        size = 0.05 if step % 2 else 1.0
        for name, p in parameters.items():
            p.grad = torch.randn_like(p) * size
            out[f"grad.{step}.{name}"] = p.grad.clone()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP, foreach=False))
        rates.append(lr)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        optimizer.step()
        if step in (0, STEPS - 1):
            out |= {f"after.{step}.{name}": p.detach().clone() for name, p in parameters.items()}
    out["norm"] = torch.stack(norms)
    out["lr"] = torch.tensor(rates, dtype=torch.float64)
    save_file(out, HERE / "optim.safetensors")


if __name__ == "__main__":
    main()
