"""Files of PyTorch, from PyTorch: `python torch_files.py` rewrites the folder torch_files beside it.

Made with torch 2.13.0. Each NAME.pt is one kind of file that torch.save or torch.jit.save has written, or an attack on
those who read it; expected.safetensors holds NAME/KEY for each tensor that must be found under KEY in NAME.pt, contiguous.
Those that begin with bad_ must be refused: they mention what is no tensor, container or number. None does harm if it is
loaded by mistake: the command that they would run is `true`.
"""

import argparse
import builtins
import collections
import os
import zipfile
from pathlib import Path, PosixPath

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent / "torch_files"
expected = {}


def save(name, value, tensors, **options):
    torch.save(value, HERE / f"{name}.pt", **options)
    expect(name, tensors)


def expect(name, tensors):
    for key, tensor in tensors.items():
        expected[f"{name}/{key}"] = tensor.detach().clone().contiguous()


def state():
    """One tensor of every kind, and every kind of view."""
    base = torch.randn(4, 6)
    weights = collections.OrderedDict(
        f32=torch.randn(3, 5),
        f16=torch.randn(7).half(),
        bf16=torch.randn(2, 3).bfloat16(),
        f64=torch.randn(2, 2).double(),
        i64=torch.tensor([1, -(2**40)]),
        i32=torch.tensor([[5, -6]], dtype=torch.int32),
        i16=torch.tensor([7, -8], dtype=torch.int16),
        i8=torch.tensor([9, -10], dtype=torch.int8),
        u8=torch.arange(5, dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        scalar=torch.tensor(2.6592),
        empty=torch.zeros(0, 3),
        base=base,
        transposed=base.t(),
        row=base[2],
        column=base[:, 1],
        steps=base[1:, ::2],
        tied=base,
        expanded=torch.arange(3.0).expand(2, 3),
    )
    weights["visual.norm.weight"] = torch.nn.Parameter(torch.randn(4))
    return weights


def checkpoint(tensors):
    """What a training program leaves: MAE's and EVA's, open_clip's, timm's."""
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    args = argparse.Namespace(
        lr=1.5e-4, output=PosixPath("out"), device=torch.device("cpu"), dtype=torch.bfloat16, tags={"a", "b"},
        betas=(0.9, 0.95), big=10**30, nested=argparse.Namespace(deep=None), shape=torch.Size([1, 2]), raw=b"\x00\xff",
    )
    return {
        "model": tensors,
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "scaler": {"scale": 65536.0},
        "epoch": 3,
        "args": args,
        "best": np.float64(0.5),
        "random": (np.random.RandomState(0).get_state()[:3], torch.get_rng_state()[:16]),
        "history": collections.defaultdict(list, loss=[1.0, 2.0]),
    }


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2, 2))
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))
        self.names = ["a", "b"]
        self.rate = 0.5

    def forward(self, x):
        return x @ self.weight + self.rate


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(Block(), Block())
        self.conv1 = torch.nn.Conv2d(1, 2, 2, bias=False)
        self.width = 2

    def forward(self, x):
        return self.blocks(x)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = Tower().half()
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.6052))
        self.sizes = [1, 2]

    def forward(self, x):
        return self.visual(x.half()) * self.logit_scale.exp()


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Other:
    """A class that nobody knows."""

    def __init__(self):
        self.weight = torch.ones(2)


def repack(source, name, method):
    """The same archive, compressed or with another order of entries."""
    with zipfile.ZipFile(HERE / f"{source}.pt") as old, zipfile.ZipFile(HERE / f"{name}.pt", "w", method) as new:
        for entry in reversed(old.namelist()):
            new.writestr(zipfile.ZipInfo(entry), old.read(entry), method)


def save_script(module, path):
    """torch.jit.save's file, without the entries that say where the sources lay on the machine that wrote it."""
    module.save(path)
    with zipfile.ZipFile(path) as old:
        entries = [(entry, old.read(entry)) for entry in old.infolist() if not entry.filename.endswith(".debug_pkl")]
    with zipfile.ZipFile(path, "w") as new:
        for entry, data in entries:
            info = zipfile.ZipInfo(entry.filename)
            # Padded as PyTorch does, so that the data begin at a multiple of 64.
            padding = -(new.fp.tell() + 30 + len(info.filename) + 4) % 64
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            new.writestr(info, data, entry.compress_type)


def main():
    HERE.mkdir(exist_ok=True)
    for old in HERE.iterdir():
        old.unlink()
    torch.manual_seed(0)

    tensors = state()
    for protocol in (2, 3, 4, 5):
        save(f"zip_{protocol}", tensors, tensors, pickle_protocol=protocol)
        save(f"legacy_{protocol}", tensors, tensors, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    repack("zip_2", "packed", zipfile.ZIP_DEFLATED)
    repack("zip_2", "unaligned", zipfile.ZIP_STORED)
    expect("packed", tensors)
    expect("unaligned", tensors)

    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    weights = net.state_dict()  # has _metadata
    save("model", checkpoint(weights), weights)
    save("legacy_model", checkpoint(weights), weights, _use_new_zipfile_serialization=False)
    ddp = {f"module._orig_mod.{key}": tensor for key, tensor in weights.items()}
    save("prefixed", {"module": ddp, "iteration": 7}, weights)
    save("open_clip", {"name": "run", "epoch": 1, "state_dict": {f"module.{k}": t for k, t in weights.items()}}, weights)
    save("nested", {"model": {"name": "vit"}, "state_dict": {"model_state_dict": weights}}, weights)
    save("bare_dict", dict(weights) | {"version": "1", "count": 5}, weights)

    model = Model().eval()
    save_script(torch.jit.script(model), HERE / "scripted.pt")
    save_script(torch.jit.trace(model, torch.randn(1, 2)), HERE / "traced.pt")
    for name in ("scripted", "traced"):
        expect(name, model.state_dict())

    refuse = {
        "bad_system": {"model": weights, "x": Call(os.system, "true")},
        "bad_eval": Call(builtins.eval, "1"),
        "bad_nested": {"model": weights, "args": argparse.Namespace(a=[(Call(os.getcwd),)])},
        "bad_class": {"model": weights, "config": Other()},
        "bad_getattr": Call(getattr, "x", "upper"),
    }
    for name, value in refuse.items():
        torch.save(value, HERE / f"{name}.pt")
        torch.save(value, HERE / f"{name}_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(net, HERE / "bad_module.pt")

    save_file(expected, HERE / "expected.safetensors")


if __name__ == "__main__":
    main()
