"""The net in this folder, in PyTorch, without the program that wrote it.

    model = load()
    model.image(torch.stack([model.pixels(picture)]))  # [B, E], of Pillow's pictures; not normalised
    model.text(model.tokens(["a photo of a cat"]))     # [B, E]

Needs torch and safetensors, Pillow for pixels(), transformers for tokens().
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


def load(folder=Path(__file__).parent, device="cpu"):
    return Model(Path(folder), device)


class Model:
    def __init__(self, folder, device):
        self.folder, self.config = folder, json.loads((folder / "config.json").read_text())
        self.weights = {k: w.float() for k, w in load_file(folder / "model.safetensors", device=str(device)).items()}

    def get(self, name):
        return self.weights.get(name)

    def linear(self, x, weight, bias):
        return F.linear(x, self.weights[weight], self.get(bias))

    def norm(self, x, name, eps):
        present = name + ".weight" in self.weights
        return F.layer_norm(x, x.shape[-1:], self.get(name + ".weight"), self.get(name + ".bias"), eps) if present else x

    def image(self, x):
        """Pixels [B, 3, S, S], normalised."""
        c, v, w = self.config["vision"], "visual.", self.weights
        gelu = {"gelu": F.gelu, "quickgelu": quick_gelu}.get(c["ffn"])
        grid, eps = c["image_size"] // c["patch_size"], c["eps"]
        turn = rotation(grid, c["width"] // c["heads"], x.device) if c["rope"] else None
        offsets, shared = relative(grid).to(x.device), self.get(v + "rel_pos_bias.relative_position_bias_table")

        def attention(x, b):
            q, k, u = (self.linear(x, f"{b}attn.{n}_proj.weight", f"{b}attn.{n}_bias") for n in "qkv")
            table = self.get(b + "attn.relative_position_bias_table")
            table = shared if table is None else table
            bias = None if table is None else table[offsets].permute(2, 0, 1)
            x = self.norm(attend(q, k, u, c["heads"], turn, bias), b + "attn.inner_attn_ln", eps)
            return self.linear(x, b + "attn.proj.weight", b + "attn.proj.bias")

        def mlp(x, b):
            first = lambda n: self.linear(x, f"{b}mlp.{n}.weight", f"{b}mlp.{n}.bias")
            if gelu:
                x, last = gelu(first("fc1")), "fc2"
            else:
                x, last = self.norm(F.silu(first("w1")) * first("w2"), b + "mlp.ffn_ln", eps), "w3"
            return self.linear(x, f"{b}mlp.{last}.weight", f"{b}mlp.{last}.bias")

        x = F.conv2d(x, w[v + "patch_embed.proj.weight"], self.get(v + "patch_embed.proj.bias"), c["patch_size"])
        x = torch.cat([w[v + "cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = self.norm(x + w[v + "pos_embed"] if c["abs_pos"] else x, v + "norm_pre", eps)
        for i in range(c["depth"]):
            b = f"{v}blocks.{i}."
            for n, branch in enumerate([attention, mlp], 1):
                if c["post_norm"]:
                    x = x + self.norm(branch(x, b), f"{b}norm{n}", eps)
                else:
                    x = x + branch(self.norm(x, f"{b}norm{n}", eps), b) * w.get(f"{b}gamma_{n}", 1)
        x = self.norm(x[:, 0], v + "norm", eps) if c["pool"] == "cls" else self.norm(x[:, 1:].mean(1), v + "fc_norm", eps)
        return x if c["head"] == "none" else self.linear(x, v + "head.weight", v + "head.bias")

    def text(self, tokens):
        """Tokens [B, T]; the mark of the end is the largest of a row."""
        c, w, t = self.config["text"], self.weights, "text."
        x = w[t + "token_embedding.weight"][tokens] + w[t + "positional_embedding"][: tokens.shape[1]]
        for i in range(c["layers"]):
            b = f"{t}transformer.resblocks.{i}."
            qkv = self.linear(self.norm(x, b + "ln_1", 1e-5), b + "attn.in_proj_weight", b + "attn.in_proj_bias")
            a = attend(*qkv.chunk(3, -1), c["heads"], causal=True)
            x = x + self.linear(a, b + "attn.out_proj.weight", b + "attn.out_proj.bias")
            m = self.linear(self.norm(x, b + "ln_2", 1e-5), b + "mlp.c_fc.weight", b + "mlp.c_fc.bias")
            m = (quick_gelu if c["quick_gelu"] else F.gelu)(m)
            x = x + self.linear(m, b + "mlp.c_proj.weight", b + "mlp.c_proj.bias")
        return self.norm(x[range(len(x)), tokens.argmax(-1)], t + "ln_final", 1e-5) @ w[t + "text_projection"]

    def pixels(self, picture):
        """A picture of Pillow's, resized, cut and normalised: [3, S, S]."""
        from PIL import Image
        from torchvision.transforms.functional import center_crop, pil_to_tensor

        p, size = self.config.get("preprocess", {}), self.config["vision"]["image_size"]
        how, side = p.get("resize", "shortest"), int(size / p.get("crop_pct", 1.0))
        if how == "longest":
            raise NotImplementedError("pictures are fitted in whole: see preprocess in config.json")
        width, height = picture.size
        if how == "squash":
            width, height = side, side
        else:
            width, height = (side, side * height // width) if width <= height else (side * width // height, side)
        resample = Image.Resampling[p.get("interpolation", "bicubic").upper()]
        x = pil_to_tensor(center_crop(picture.convert("RGB").resize((width, height), resample), size)).float() / 255
        column = lambda name: torch.tensor(self.config[name]).view(3, 1, 1)
        return (x - column("mean")) / column("std")

    def tokens(self, texts):
        """Texts as token ids: [B, T]."""
        from transformers import CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(self.folder)
        kind = {"padding": "max_length", "truncation": True, "max_length": self.config["text"]["context_length"]}
        return tokenizer(list(texts), return_tensors="pt", **kind).input_ids


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def attend(q, k, v, heads, turn=None, bias=None, causal=False):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    q, k = (q, k) if turn is None else (turn(q), turn(k))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal).transpose(1, 2).flatten(2)


def rotation(grid, width, device):
    """Turns pairs of channels by a patch's row, then by its column, on a grid of 16; the first token stays."""
    place = torch.arange(grid, dtype=torch.double) / grid * 16
    angle = place[:, None] * 10000.0 ** (-torch.arange(0, width // 2, 2, dtype=torch.double) / (width // 2))
    rows, columns = angle[:, None].expand(-1, grid, -1), angle[None].expand(grid, -1, -1)
    angle = F.pad(torch.cat([rows, columns], -1).flatten(0, 1), (0, 0, 1, 0))
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)
    return lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)


def relative(grid):
    """Rows of a table of relative positions, for every two tokens: [1 + N, 1 + N]."""
    at = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))
    apart = at[:, None] - at[None] + grid - 1
    last = (2 * grid - 1) ** 2 + 2
    out = torch.full((1 + grid * grid, 1 + grid * grid), last)
    out[1:, 1:] = apart[..., 0] * (2 * grid - 1) + apart[..., 1]
    out[0, 1:], out[1:, 0] = last - 2, last - 1
    return out
