"""Small checkpoints in each family's layout, written by its own library: `python families.py` rewrites `families/`.

Made with torch 2.13.0, timm 1.0.31, open_clip_torch 3.3.0, transformers 5.23.0. Nets with random weights, norms and biases
included, are stored as float16 and evaluated in float64. Every folder holds a checkpoint as a user would have it, and
`expected.safetensors` with

    input.images  [B, 3, S, S], normalised; input.tokens [B, T] where there is a text encoder
    output.image  the image embeddings, by the library's own forward pass
    output.tokens every token after the final norm and the projection
    output.text   the text embeddings
"""

import json
import shutil
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from transformers import CLIPConfig, CLIPModel

HERE = Path(__file__).parent / "families"
SIZE, PATCH, VOCAB, CONTEXT = 32, 8, 64, 12


def randomise(net):
    torch.manual_seed(0)
    for name, parameter in net.named_parameters():
        draw = torch.randn_like(parameter)
        if parameter.ndim == 1 and "class_embedding" not in name:
            scale = name.endswith("weight") or "gamma" in name
            parameter.data = draw * 0.1 + (1.0 if scale else 0.0)
        elif parameter.ndim == 0:
            parameter.data = torch.tensor(2.5)
        elif "cls_token" in name or "class_embedding" in name or "pos" in name and "table" not in name:
            parameter.data = draw
        else:
            parameter.data = draw * 0.7 * parameter[0].numel() ** -0.5
    net = net.double().eval()
    for parameter in net.parameters():  # not the buffers of rotary embeddings
        parameter.data = parameter.data.half().double()
    return net


def folder(name):
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def inputs():
    """Images and tokens, the same for every net."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    tokens = torch.zeros(3, CONTEXT, dtype=torch.long)
    for row, words in enumerate([[5, 9, 30], [], [1, 2, 3, 4, 5, 6]]):
        tokens[row, : len(words) + 2] = torch.tensor([VOCAB - 2, *words, VOCAB - 1])
    return images, tokens


def expect(path, images, image, every, tokens=None, text=None, **more):
    out = {"input.images": images, "output.image": image, "output.tokens": every}
    out |= {name.replace("__", "."): value for name, value in more.items()}
    if text is not None:
        out |= {"input.tokens": tokens, "output.text": text}
    out = {k: v.detach().float() if v.is_floating_point() else v for k, v in out.items()}
    save_file({k: v.contiguous() for k, v in out.items()}, path / "expected.safetensors")


def halves(net):
    return {k: v.half().contiguous() if v.is_floating_point() else v for k, v in net.state_dict().items()}


TEXT = dict(context_length=CONTEXT, vocab_size=VOCAB, width=64, heads=2, layers=2)


def with_open_clip(name, vision, layers=2, **options):
    """An open_clip hub folder."""
    kind = CustomTextCLIP if options.pop("custom_text", False) else CLIP
    model_cfg = dict(embed_dim=48, vision_cfg=vision, text_cfg=dict(TEXT, layers=layers), **options)
    net = randomise(kind(**model_cfg))
    if kind is CustomTextCLIP:
        model_cfg["custom_text"] = True
    path, (images, tokens) = folder(name), inputs()
    preprocess = dict(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4], interpolation="bicubic")
    config = dict(model_cfg=model_cfg, preprocess_cfg=preprocess)
    (path / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(halves(net), path / "open_clip_model.safetensors")
    visual = net.visual
    if "timm_model_name" in vision:
        every = visual.trunk.fc_norm(visual.trunk.forward_features(images))
        every = visual.head(visual.trunk.head(every))
    else:
        x = visual.transformer(visual._embeds(images))
        every = visual.ln_post(x) @ visual.proj
    expect(path, images, net.encode_image(images), every, tokens, net.encode_text(tokens))


def with_transformers(name, layers=2, **saving):
    """A Hugging Face folder."""
    vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
                  image_size=SIZE, patch_size=PATCH, hidden_act="quick_gelu")
    text = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=layers, num_attention_heads=2,
                max_position_embeddings=CONTEXT, vocab_size=VOCAB, hidden_act="quick_gelu",
                bos_token_id=VOCAB - 2, eos_token_id=VOCAB - 1)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)
    net = randomise(CLIPModel(config))
    path, (images, tokens) = folder(name), inputs()
    hidden = net.vision_model(pixel_values=images).last_hidden_state
    every = net.visual_projection(net.vision_model.post_layernorm(hidden))
    out = net(input_ids=tokens, pixel_values=images)
    image = net.visual_projection(net.vision_model(pixel_values=images).pooler_output)
    text = net.text_projection(net.text_model(input_ids=tokens).pooler_output)
    assert torch.allclose(image / image.norm(dim=-1, keepdim=True), out.image_embeds)
    expect(path, images, image, every, tokens, text)
    net.half().save_pretrained(path, **saving)


def with_timm(name, architecture, **options):
    """A timm hub folder."""
    options = dict(img_size=SIZE, patch_size=PATCH, embed_dim=64, depth=2, num_heads=2) | options
    net = randomise(timm.create_model(architecture, **options))
    path, (images, _) = folder(name), inputs()
    every = net.head(net.fc_norm(net.forward_features(images)))
    expect(path, images, net(images), every)
    timm.models.save_for_hf(net.half(), path, safe_serialization=True)


SMALL = dict(img_size=SIZE, patch_size=PATCH, depth=2, ref_feat_shape=(16, 16))


def _trunk(net, kwargs):
    net.pretrained_cfg = net.default_cfg = {}
    return net


@register_model
def golden_eva02_clip(pretrained=False, **kwargs):
    kwargs = {k: v for k, v in kwargs.items() if k in ("num_classes", "global_pool")}
    return _trunk(Eva(embed_dim=64, num_heads=1, mlp_ratio=86 / 64 + 1e-4, qkv_fused=False, swiglu_mlp=True,
                      scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True, **SMALL, **kwargs), kwargs)


@register_model
def golden_eva_giant(pretrained=False, **kwargs):
    kwargs = {k: v for k, v in kwargs.items() if k in ("num_classes", "global_pool")}
    return _trunk(Eva(embed_dim=64, num_heads=1, mlp_ratio=2, **SMALL, **kwargs), kwargs)


@register_model
def golden_eva02_enormous(pretrained=False, **kwargs):
    kwargs = {k: v for k, v in kwargs.items() if k in ("num_classes", "global_pool")}
    return _trunk(Eva(embed_dim=64, num_heads=1, mlp_ratio=2, use_post_norm=True, **SMALL, **kwargs), kwargs)


@register_model
def golden_vit(pretrained=False, **kwargs):
    kwargs = {k: v for k, v in kwargs.items() if k in ("num_classes", "global_pool")}
    return _trunk(VisionTransformer(img_size=SIZE, patch_size=PATCH, depth=2, embed_dim=64, num_heads=1,
                                    mlp_ratio=2, **kwargs), kwargs)


def trunk(name):
    return dict(image_size=SIZE, timm_model_name=name, timm_model_pretrained=False, timm_pool="token",
                timm_proj=None)


PLAIN = dict(image_size=SIZE, patch_size=PATCH, width=64, layers=2, head_width=32, mlp_ratio=2.0)

if __name__ == "__main__":
    with_open_clip("open_clip", PLAIN)
    with_open_clip("open_clip_quickgelu", dict(PLAIN, ls_init_value=0.1), quick_gelu=True)
    with_open_clip("open_clip_eva02", trunk("golden_eva02_clip"), layers=1, custom_text=True)
    with_open_clip("open_clip_eva01", trunk("golden_eva_giant"), layers=1, custom_text=True)
    with_open_clip("open_clip_bige", trunk("golden_eva02_enormous"), layers=1, custom_text=True)
    with_open_clip("open_clip_timm_vit", dict(trunk("golden_vit"), timm_proj="linear"), layers=1, custom_text=True)
    with_transformers("hf_clip")
    with_transformers("hf_sharded", layers=1, max_shard_size="100KB")
    with_timm("timm_eva02_ti_mim", "eva02_tiny_patch14_224", num_classes=0)
    with_timm("timm_eva02_b_mim", "eva02_base_patch14_224", num_classes=0)
    with_timm("timm_eva02_clip", "eva02_base_patch16_clip_224", num_classes=48)
    with_timm("timm_eva01_clip", "eva_giant_patch14_clip_224", num_classes=48, mlp_ratio=2)
    with_timm("timm_eva02_e_clip", "eva02_enormous_patch14_clip_224", num_classes=48, mlp_ratio=2)
    with_timm("timm_mae", "vit_base_patch16_224", num_classes=0, global_pool="token", mlp_ratio=2)
    with_timm("timm_beitv2", "beitv2_base_patch16_224", num_classes=0, mlp_ratio=2)
