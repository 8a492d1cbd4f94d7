"""Interpolated position and patch embeddings, from torch 2.13.0: `python resize.py` rewrites `resize.safetensors`.

    input.pos, output.pos.G    position embedding [1, 17, 8] of a 4 x 4 grid, and for grids of G x G
    input.patch, output.patch  patch embedding [6, 3, 14, 14], and for patches of 16 pixels
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

bicubic = lambda x, side: interpolate(x, size=(side, side), mode="bicubic", align_corners=False)

torch.manual_seed(0)
pos, patch = torch.randn(1, 17, 8), torch.randn(6, 3, 14, 14)
out = {"input.pos": pos, "input.patch": patch, "output.patch": bicubic(patch, 16)}
for grid in (3, 6):
    patches = bicubic(pos[:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2), grid)
    patches = patches.permute(0, 2, 3, 1).reshape(1, grid * grid, 8)
    out[f"output.pos.{grid}"] = torch.cat([pos[:, :1], patches], dim=1)
save_file({k: v.contiguous() for k, v in out.items()}, Path(__file__).parent / "resize.safetensors")
