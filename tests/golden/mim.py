"""Masked image modelling by EVA-02's own code, which is not part of this repository: `python mim.py EVA` rewrites
mim.safetensors, given a checkout of baaivision/EVA (5623d08), and einops.

Made with torch 2.13.0, timm 1.0.31. A tiny net of `EVA-02/asuka/modeling_pretrain.py` in float64, whose weights are float16
numbers, and the loss of `engine_for_pretraining.py`; a tenth of the gradient reaches the patch embedding
(`--stop_grad_conv1`). The file holds

    param.NAME     the weights, under EVA's names
    images         [B, 3, S, S], normalised
    masked         [B, N] bool
    target         [B, 1+N, E], the teacher's tokens, [CLS] first
    loss.masked    EVA's loss at the masked patches
    grad.NAME      its gradients
    loss.kept      the same loss over [CLS] and the other patches
    both.NAME      gradients of half of each
"""

import sys
import types
from functools import partial
from pathlib import Path

import timm.layers
import torch
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent
EVA = Path(sys.argv[1])
SIZE, PATCH, WIDTH, OUT = 32, 2, 32, 24  # rotations are those of a 16 x 16 grid


def stand_in(name, **members):
    """What EVA's files import and this net does not compute with, and what timm has moved since."""
    sys.modules[name] = module = types.ModuleType(name)
    vars(module).update(members)


stand_in("xformers")
stand_in("xformers.ops", SwiGLU=None)
stand_in("apex")
stand_in("apex.normalization", FusedLayerNorm=nn.LayerNorm)
stand_in("timm.models.layers", **vars(timm.layers))
stand_in("timm.models.registry", register_model=lambda f: f)


def randomise(net):
    """Norms and biases too, all of them float16 numbers."""
    torch.manual_seed(0)
    for name, parameter in net.named_parameters():
        draw = torch.randn_like(parameter)
        if parameter.ndim == 1:
            draw = draw * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        elif "token" not in name and "pos_embed" not in name:
            draw = draw * 0.7 * parameter[0].numel() ** -0.5
        parameter.data = draw.half().double()
    net.double()


def main():
    sys.path.insert(0, str(EVA / "EVA-02/asuka"))
    import modeling_pretrain

    net = modeling_pretrain.VisionTransformerForMaskedImageModeling(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=1, mlp_ratio=1, predict_feature_dim=OUT,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), rope=True, naiveswiglu=True, subln=True, stop_grad_conv1=True)
    randomise(net)
    torch.manual_seed(2)
    n = (SIZE // PATCH) ** 2
    images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    target = torch.randn(2, 1 + n, OUT, dtype=torch.float64)
    order = torch.stack([torch.randperm(n) for _ in images])
    masked = torch.zeros(2, n, dtype=torch.bool).scatter(1, order[:, :105], True)  # EVA-02's 105 of 256

    # engine_for_pretraining.compute_loss, in float64
    loss = lambda output, label: -nn.CosineSimilarity(dim=-1)(output, label).mean()
    seen = []
    net.norm.register_forward_hook(lambda module, args, out: seen.append(out))
    predicted = net(images, masked)
    at_masked = loss(predicted, target[:, 1:][masked])
    every = net.lm_head(seen[0])
    assert torch.allclose(every[:, 1:][masked], predicted, rtol=0, atol=1e-12)
    kept = torch.cat([torch.ones(2, 1, dtype=torch.bool), ~masked], 1)
    at_kept = loss(every[kept], target[kept])
    names, parameters = zip(*net.named_parameters())
    gradients = lambda of: torch.autograd.grad(of, parameters, retain_graph=True)

    out = {f"param.{name}": p.detach().half() for name, p in zip(names, parameters)}
    out |= {"images": images.float(), "masked": masked, "target": target.float()}
    out |= {"loss.masked": at_masked.detach().float(), "loss.kept": at_kept.detach().float()}
    out |= {f"grad.{name}": g.float() for name, g in zip(names, gradients(at_masked))}
    out |= {f"both.{name}": g.float() for name, g in zip(names, gradients(at_masked / 2 + at_kept / 2))}
    save_file({k: v.contiguous() for k, v in out.items()}, HERE / "mim.safetensors")


if __name__ == "__main__":
    main()
