"""Small checkpoints under official names, written by the authors' own code, which is not part of this repository:

    python official.py EVA UTA CLIP MAE UNILM

rewrites `families/official_*`, given checkouts of baaivision/EVA (5623d08), jihaonew/UTA (0a930cc), openai/CLIP (d05afc4),
facebookresearch/mae (efb2a80) and microsoft/unilm (768a3c8), and einops. `weights.safetensors` holds what
`torch.save(net.state_dict())` would, under the same names, and OpenAI's `weights.pt` is an archive of TorchScript as they
ship it; the rest is as in `families.py`. What the authors' files import and these nets do not compute with is
replaced by stand-ins below: xformers, but for its SwiGLU, apex' norm, and names that timm has moved since.
"""

import importlib
import json
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import timm.layers
import timm.models
import timm.models.vision_transformer as timm_vit
import torch
from safetensors.torch import save_file
from torch import nn

from families import CONTEXT, HERE, PATCH, SIZE, VOCAB, expect, folder, halves, inputs, randomise
from torch_files import save_script

EVA, UTA, CLIP, MAE, UNILM = (Path(path) for path in sys.argv[1:6])
norm = partial(nn.LayerNorm, eps=1e-6)


class SwiGLU(nn.Module):
    """xformers' packed SwiGLU."""

    def __init__(self, in_features, hidden_features):
        super().__init__()
        self.w12 = nn.Linear(in_features, 2 * hidden_features)
        self.w3 = nn.Linear(hidden_features, in_features)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(nn.functional.silu(gate) * value)


def stand_in(name, **members):
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, module)


stand_in("xformers")
stand_in("xformers.ops", SwiGLU=SwiGLU)
stand_in("apex")
stand_in("apex.normalization", FusedLayerNorm=nn.LayerNorm)
stand_in("timm.models.layers", **vars(timm.layers))
stand_in("timm.models.registry", register_model=lambda f: f)


def package(name, path, *modules):
    """Modules of a package, without what its `__init__` imports."""
    stand_in(name, __path__=[str(path)])
    return [importlib.import_module(f"{name}.{module}") for module in modules]


def store(name, net, image, every, text=None, arch=None, script=None, **more):
    path, (images, tokens) = folder(f"official_{name}"), inputs()
    expect(path, images, image, every, tokens, text, **more)
    if script is not None:
        save_script(script, path / "weights.pt")
    else:
        save_file(halves(net), path / "weights.safetensors")
    if arch is not None:
        (path / "arch.json").write_text(json.dumps(arch, indent=2) + "\n")


def clip_pair(name, visual, text, arch=None):
    """EVA's CustomCLIP and UTA's CLIP: `visual`, `text` and `logit_scale`."""
    net = nn.Module()
    net.visual, net.text = visual, text
    net.logit_scale = nn.Parameter(torch.zeros([]))
    randomise(net)
    images, tokens = inputs()
    every = visual.head(visual.norm(visual.forward_features(images, return_all_features=True)))
    store(name, net, visual(images), every, text(tokens), arch)


def pretraining(name, net, masked=False):
    """A net of masked image modelling: nothing masked and, if asked for, every third patch too."""
    randomise(net)
    images, _ = inputs()
    seen = []
    net.norm.register_forward_hook(lambda module, args, out: seen.append(out))

    def every(masked):
        seen.clear()
        net(images, masked)
        return net.lm_head(seen[0])  # BEiT v2's second branch comes after it

    mask = torch.zeros(len(images), net.patch_embed.num_patches, dtype=torch.bool)
    whole, more = every(mask), {}
    if masked:
        mask[:, ::3] = True
        more = dict(input__masked=mask, output__masked=every(mask))
    store(name, net, whole[:, 0], whole, **more)


def main():
    text = dict(context_length=CONTEXT, vocab_size=VOCAB, width=64, heads=1, layers=2, output_dim=48)
    vision = dict(img_size=SIZE, patch_size=PATCH, depth=2, num_classes=48, qkv_bias=True,
                  use_mean_pooling=False, norm_layer=norm)
    swiglu = dict(rope=True, intp_freq=True, naiveswiglu=True, subln=True)

    vit, transformer = package("uta_vit", UTA / "eva_vit_model", "eva_vit", "transformer")
    clip_pair("uta", vit.EVAVisionTransformer(embed_dim=128, num_heads=2, mlp_ratio=0.6667, **swiglu, **vision),
              transformer.TextTransformer(**text))

    text["layers"] = 1
    vit, transformer = package("eva_clip", EVA / "EVA-CLIP/rei/eva_clip", "eva_vit_model", "transformer")
    net = lambda **options: vit.EVAVisionTransformer(**options, **vision)
    clip_pair("eva02_clip", net(embed_dim=64, num_heads=1, mlp_ratio=1.3334, **swiglu),
              transformer.TextTransformer(**text))
    clip_pair("eva01_clip", net(embed_dim=64, num_heads=1, mlp_ratio=2), transformer.TextTransformer(**text))
    clip_pair("bige_clip", net(embed_dim=64, num_heads=2, mlp_ratio=2, postnorm=True),
              transformer.TextTransformer(**text),
              dict(embed_dim=48,
                   vision=dict(image_size=SIZE, patch_size=PATCH, width=64, depth=2, heads=2, hidden=128, out=48,
                               ffn="gelu", rope=False, post_norm=True),
                   text=dict(context_length=CONTEXT, vocab_size=VOCAB, width=64, heads=1, layers=1, out=48)))

    sys.path.insert(0, str(EVA / "EVA-02/asuka"))
    import modeling_pretrain
    net = partial(modeling_pretrain.VisionTransformerForMaskedImageModeling, img_size=SIZE, embed_dim=64, depth=2,
                  predict_feature_dim=48, norm_layer=norm)
    # Rotations are those of a 16 x 16 grid, without interpolation: the only one that these nets are trained on.
    rope = dict(rope=True, patch_size=SIZE // 16, num_heads=1, mlp_ratio=1)
    pretraining("eva02_ti", net(swiglu=True, **rope))
    pretraining("eva02_b", net(naiveswiglu=True, subln=True, **rope))

    beit2()
    openai()
    masked_autoencoder()


def beit2():
    """BEiT v2 as pre-trained, a second branch besides, and as fine-tuned."""
    for name in ("modeling_finetune", "modeling_pretrain"):  # EVA's have the same names
        sys.modules.pop(name, None)
    sys.path.insert(0, str(UNILM / "beit2"))
    import modeling_finetune
    import modeling_pretrain

    options = dict(img_size=SIZE, patch_size=PATCH, embed_dim=64, depth=2, num_heads=2, mlp_ratio=2, qkv_bias=True,
                   norm_layer=norm, init_values=0.1, use_abs_pos_emb=False)
    pretraining("beit2", modeling_pretrain.VisionTransformerForMaskedImageModelingCLS(
        vocab_size=48, use_shared_rel_pos_bias=True, early_layers=1, head_layers=1, shared_lm_head=False, **options),
        masked=True)
    net = randomise(modeling_finetune.VisionTransformer(num_classes=48, use_rel_pos_bias=True, **options))
    images, _ = inputs()
    store("beit2_finetuned", net, net(images), net(images, return_all_tokens=True))


def openai():
    """The archive as released: traced, matrices in f16, norms and embeddings in f32, three sizes besides."""
    sys.path.insert(0, str(CLIP / "clip"))
    import model

    net = randomise(model.CLIP(48, SIZE, 2, 64, PATCH, CONTEXT, VOCAB, 64, 1, 1)).float()  # its norms compute in f32
    images, tokens = inputs()
    images, seen = images.float(), {}
    keep = lambda module, args, out: seen.update(tokens=out.permute(1, 0, 2))
    hook = net.visual.transformer.register_forward_hook(keep)
    image, text = net.encode_image(images), net.encode_text(tokens)
    every = net.visual.ln_post(seen["tokens"]) @ net.visual.proj
    hook.remove()
    for name, value in [("input_resolution", SIZE), ("context_length", CONTEXT), ("vocab_size", VOCAB)]:
        vars(net).pop(name, None)
        net.register_buffer(name, torch.tensor(value))
    model.convert_weights(net)
    calls = dict(forward=(images, tokens), encode_image=images, encode_text=tokens)
    store("openai", net, image, every, text, script=torch.jit.trace_module(net, calls, check_trace=False))


def masked_autoencoder():
    """MAE's whole net of pre-training: its decoder is no part of the encoder."""
    block, np.float = timm_vit.Block, float
    timm_vit.Block = lambda *args, qk_scale=None, **options: block(*args, **options)
    sys.path.insert(0, str(MAE))
    import models_mae

    net = models_mae.MaskedAutoencoderViT(img_size=SIZE, patch_size=PATCH, embed_dim=64, depth=2, num_heads=1,
                                          decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=1, mlp_ratio=2,
                                          norm_layer=norm)
    randomise(net)
    images, _ = inputs()
    latent, _, order = net.forward_encoder(images, 0.0)
    patches = latent[:, 1:].gather(1, order[..., None].expand(-1, -1, latent.shape[-1]))
    every = torch.cat([latent[:, :1], patches], dim=1)
    store("mae", net, every[:, 0], every)
    # As released: beside counters, in torch's own format.
    torch.save({"model": halves(net), "epoch": 1}, HERE / "official_mae/checkpoint.pth")


if __name__ == "__main__":
    main()
