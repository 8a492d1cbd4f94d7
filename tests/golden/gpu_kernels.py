"""Holds the GPU's fused loops (crates/torch-ext/cpp/kernels.cu) beside PyTorch's operators, without a GPU.

    python gpu_kernels.py

Every kernel is compiled for the CPU with gpu_kernels/threads.cpp, one thread of the system for each of a block's, and its
results and gradients are compared with autograd's of plain operators. What a GPU adds (NVRTC, launching, alignment) is not
seen here: `cargo test -p torch-ext --test it cuda:: -- --ignored` is for that. Prints the worst difference of each kernel.
"""

import ctypes
import pathlib
import subprocess
import tempfile

import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).parent
KINDS = {"float": torch.float32, "Bf16": torch.bfloat16}
ROWS, EPS = 7, ctypes.c_float(1e-6)
worst = {}


def row(width):
    """How a row is shared among threads: as in crates/torch-ext/cpp/gpu.cpp."""
    vectors = width // 4
    threads = (vectors + 127) // 128 * 32
    return f"-DD={width} -DTHREADS={threads} -DPER={(vectors + threads - 1) // threads}"


def build(options):
    library = tempfile.NamedTemporaryFile(suffix=".so", delete=False).name
    command = ["g++", "-std=c++20", "-O1", "-w", "-fPIC", "-shared", *options.split(), HERE / "gpu_kernels/threads.cpp"]
    subprocess.run([*command, "-o", library, "-lpthread"], check=True)
    loaded = ctypes.CDLL(library)
    pathlib.Path(library).unlink()
    return loaded


def at(tensor):
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def i64(*numbers):
    return [ctypes.c_longlong(n) for n in numbers]


def close(kernel, found, expected, tolerance):
    found, expected = found.double(), expected.detach().double()
    off = ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
    assert off <= tolerance, f"{kernel}: {off}"
    worst[kernel] = max(worst.get(kernel, 0.0), off)


def leaf(tensor):
    return tensor.detach().float().clone().requires_grad_(True)


def norms():
    for width in (8, 96, 772, 1408, 2052):
        for branch_kind, kind in (("float", "float"), ("float", "Bf16"), ("Bf16", "Bf16")):
            lib = build(f"{row(width)} -DNORM -DBRANCH={branch_kind} -DOUT={kind}")
            name, tolerance = f"norm, {branch_kind} + x, as {kind}", 1e-5 if kind == "float" else 1e-2
            x, more = torch.randn(ROWS, width) * 2 + 1, torch.randn(ROWS, width).to(KINDS[branch_kind])
            weight, bias = torch.randn(width), torch.randn(width)
            for branch in (more, None):
                total, out = torch.empty(ROWS, width), torch.empty(ROWS, width, dtype=KINDS[kind])
                moments = torch.empty(ROWS, 2)
                lib.norm(ROWS, at(x), at(branch), at(total), at(weight), at(bias), at(out), at(moments), EPS)
                leaves = leaf(x if branch is None else x + branch.float()), leaf(weight), leaf(bias)
                expected = F.layer_norm(leaves[0], (width,), *leaves[1:], 1e-6)
                if branch is not None:
                    close(name, total, leaves[0], 0.0)
                close(name, out, expected, tolerance)
                grad, stream = torch.randn(ROWS, width).to(KINDS[kind]), torch.randn(ROWS, width)
                expected.backward(grad.float())
                for blocks, down in ((ROWS, stream), (3, stream), (3, None)):
                    dx, sums = torch.empty(ROWS, width), torch.empty(blocks, 2, width)
                    narrow = torch.empty(ROWS, width, dtype=torch.bfloat16) if down is not None else None
                    lib.norm_back(blocks, at(leaves[0]), at(grad), at(down), at(weight), at(moments), at(dx), at(narrow),
                                  at(sums), *i64(ROWS))
                    expected_dx = leaves[0].grad + (0 if down is None else down)
                    close(name, dx, expected_dx, 1e-5)
                    if narrow is not None:
                        close(f"{name}, gradient in bf16", narrow, expected_dx, 1e-2)
                    close(name, sums.sum(0)[0], leaves[1].grad, 1e-5)
                    close(name, sums.sum(0)[1], leaves[2].grad, 1e-5)


def gates():
    for width in (8, 340, 2048):
        for kind in KINDS:
            lib, tolerance = build(f"{row(width)} -DGATE -DNUMBER={kind}"), 2e-5 if kind == "float" else 1e-2
            for joint in (False, True):
                for normed in (False, True):
                    name = f"gate{', norm' if normed else ''}, {kind}"
                    both = (torch.randn(ROWS, 2 * width) * 4).to(KINDS[kind])
                    grads = torch.empty_like(both)
                    halves = [list(t.split(width, 1)) for t in (both, grads)]
                    if not joint:
                        halves = [[half.contiguous() for half in pair] for pair in halves]
                    (a, b), (da, db) = halves
                    step = i64(2 * width if joint else width)
                    weight, bias = torch.randn(width), torch.randn(width)
                    out, moments = torch.empty(ROWS, width, dtype=KINDS[kind]), torch.empty(ROWS, 2)
                    used = weight if normed else None
                    lib.gate(ROWS, at(a), at(b), *step, at(out), at(moments), at(used), at(bias), EPS)
                    leaves = leaf(a), leaf(b), leaf(weight), leaf(bias)
                    expected = F.silu(leaves[0]) * leaves[1]
                    if normed:
                        expected = F.layer_norm(expected, (width,), *leaves[2:], 1e-6)
                    close(name, out, expected, tolerance)
                    grad, sums = torch.randn(ROWS, width).to(KINDS[kind]), torch.empty(3, 2, width)
                    expected.backward(grad.float())
                    lib.gate_back(3, at(a), at(b), *step, at(grad), at(da), at(db), at(moments), at(used), at(sums),
                                  *i64(ROWS))
                    close(name, da, leaves[0].grad, tolerance)
                    close(name, db, leaves[1].grad, tolerance)
                    if normed:
                        close(name, sums.sum(0)[0], leaves[2].grad, 1e-4)
                        close(name, sums.sum(0)[1], leaves[3].grad, 1e-4)


def rotations():
    samples, tokens, heads, width = 4, 9, 3, 16
    for kind in KINDS:
        lib = build(f"-DROTATE -DWIDTH={width} -DHEADS={heads} -DNUMBER={kind}")
        for tables in (1, samples):
            # The second of three parts side by side, as of queries, keys and values.
            wide = torch.randn(samples, tokens, 3 * heads * width).to(KINDS[kind])
            x = wide.chunk(3, -1)[1].unflatten(-1, (heads, width))
            angles = torch.randn(tables, tokens, width // 2)
            turns = torch.stack([angles.cos(), angles.sin()], -1).flatten(-2).contiguous()
            out, pairs = torch.empty(x.shape, dtype=x.dtype), x.numel() // 2
            lib.rotate((pairs + 255) // 256, at(x), *i64(*x.stride()[:3]), at(out), *i64(*out.stride()[:3]), at(turns),
                       *i64(0 if tables == 1 else tokens * width), ctypes.c_float(-1), tokens, pairs)
            complex_x = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
            turned = complex_x * torch.view_as_complex(turns.unflatten(-1, (-1, 2))).conj().unsqueeze(2)
            close(f"rotate, {kind}", out, torch.view_as_real(turned).flatten(-2), 1e-6 if kind == "float" else 1e-2)


torch.manual_seed(0)
norms(), gates(), rotations()
for kernel, off in worst.items():
    print(f"{kernel:<40} {off:.1e}")
