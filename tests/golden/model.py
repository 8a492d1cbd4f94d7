"""Reference values of the networks, from timm and open_clip: `python model.py` rewrites the safetensors files beside it.

Made with torch 2.13.0, timm 1.0.31, open_clip_torch 3.3.0. Small nets with random weights, norms and biases included, are
evaluated in float64 and stored as float32. Every file holds

    weights.KEY   the net, under the reference's own names
    input.*       images [B, 3, S, S] and kept [B, K], or tokens [B, T]
    probe.*       what an output is multiplied by to get a scalar loss
    output.*      all: every token of the whole image; kept: [CLS] and the kept patches; text: the embedding
    grad.KEY      gradient of sum(output * probe), for kept tokens where there are any
"""

from pathlib import Path

import torch
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file
from timm.models.eva import Eva

HERE = Path(__file__).parent


def randomise(net):
    for name, parameter in net.named_parameters():
        draw = torch.randn_like(parameter)
        if parameter.ndim == 1:
            scale = "norm" in name or "ln_" in name
            parameter.data = draw * 0.2 + (1.0 if scale and name.endswith("weight") else 0.0)
        else:
            parameter.data = draw * 0.15


def every_token(net, images):
    return net.head(net.forward_features(images))


def kept_tokens(net, images, kept):
    """The net on [CLS] and the kept patches, each at its own place."""
    at = lambda rows, width: rows.gather(1, kept[..., None].expand(-1, -1, width))
    batch, width = len(images), net.embed_dim
    x = at(net.patch_embed(images), width) + at(net.pos_embed[:, 1:].expand(batch, -1, -1), width)
    x = torch.cat([(net.cls_token + net.pos_embed[:, :1]).expand(batch, -1, -1), x], dim=1)
    rope = None
    if net.rope is not None:
        table = net.rope.get_embed().to(x.dtype)
        rope = table[kept][:, None]
    for block in net.blocks:
        x = block(x, rope=rope)
    return net.head(net.norm(x))


def store(name, net, **tensors):
    out = {f"weights.{key}": value for key, value in net.named_parameters()}
    out |= {f"grad.{key}": value.grad for key, value in net.named_parameters()}
    out |= {key.replace("__", "."): value for key, value in tensors.items()}
    out = {k: v.detach().float() if v.is_floating_point() else v for k, v in out.items()}
    save_file({k: v.contiguous() for k, v in out.items()}, HERE / f"{name}.safetensors")


def vision(name, **options):
    torch.manual_seed(0)
    net = Eva(img_size=32, patch_size=8, num_classes=24, embed_dim=32, depth=2, num_heads=2,
              mlp_ratio=44 / 32, global_pool="token", use_fc_norm=False, **options).double().eval()
    randomise(net)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    kept = torch.stack([torch.randperm(16)[:6] for _ in images])
    kept[0] = kept[0].sort().values
    probe = torch.randn(2, 7, 24, dtype=torch.float64)
    output = kept_tokens(net, images, kept)
    (output * probe).sum().backward()
    store(name, net, input__images=images, input__kept=kept, probe__kept=probe,
          output__all=every_token(net, images), output__kept=output)


def text(name):
    torch.manual_seed(0)
    net = TextTransformer(context_length=12, vocab_size=64, width=32, heads=2, layers=2,
                          output_dim=24).double().eval()
    randomise(net)
    tokens = torch.tensor([[62, 5, 9, 30, 63, 0, 0, 0, 0, 0, 0, 0],
                           [62, 63, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                           [62, 1, 2, 3, 4, 5, 6, 63, 0, 0, 0, 0]])
    probe = torch.randn(3, 24, dtype=torch.float64)
    output = net(tokens)
    (output * probe).sum().backward()
    store(name, net, input__tokens=tokens, probe__text=probe, output__text=output)


if __name__ == "__main__":
    vision("vit_eva02", qkv_fused=False, swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=True,
           ref_feat_shape=(16, 16))
    vision("vit_eva01", qkv_fused=True, swiglu_mlp=False, use_rot_pos_emb=False)
    text("text")
