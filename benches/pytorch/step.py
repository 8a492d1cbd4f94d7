"""The peer of `uta bench step`: one pre-training step of the paper in plain PyTorch.

    python step.py [--part all|student|teacher] [--student eva02_base_patch14_224] [--teacher vit_large_patch14_clip_224]
                   [--batch 8] [--ratio 0.4] [--precision bf16|f32] [--threads 2] [--steps 5] [--profile]
                   [--device cpu|cuda]

timm's EVA-02 gets the kept patches with their gathered rotary rows (its own patch dropout, told which to keep), and timm's
CLIP encoder the whole images; bf16 autocast, scaled_dot_product_attention, fused AdamW, gradients clipped at 3. Random
weights and pictures. Prints one JSON object: the median over the steps after two for warming up.
"""

import argparse
import json
import resource
import statistics
import time

import timm
import torch
import torch.nn.functional as F


class Keep(torch.nn.Module):
    """Stands in for timm's PatchDropout: keeps the patches it is told to, and [CLS]."""

    kept = None

    def forward(self, x):
        index = self.kept.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return torch.cat([x[:, :1], x[:, 1:].gather(1, index)], 1), self.kept


class Peer:
    def __init__(self, a):
        torch.manual_seed(0)
        torch.set_default_device(a.device)
        self.a, self.width = a, 768
        if a.part != "student":
            self.teacher = timm.create_model(a.teacher, num_classes=a.width).eval().requires_grad_(False)
        if a.part != "teacher":
            self.student = timm.create_model(a.student, num_classes=a.width, global_pool="").train()
            self.student.patch_drop = Keep()
            self.optimizer = torch.optim.AdamW(
                self.student.parameters(), lr=1.5e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05, fused=True
            )
        size = timm.get_pretrained_cfg(a.student).input_size[-1] if a.part != "teacher" else 224
        self.images = torch.randn(a.batch, 3, size, size)
        patches = (size // 14) ** 2
        self.keep = round(patches * (1 - a.ratio))
        self.patches = patches
        self.fixed = torch.randn(a.batch, 1 + self.keep, a.width)

    def targets(self, index):
        with torch.no_grad():
            tokens = self.teacher.forward_features(self.images)  # the final norm is in there
            tokens = self.teacher.head(tokens)
            return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

    def step(self):
        a = self.a
        kept = torch.rand(a.batch, self.patches).argsort(1)[:, : self.keep].sort(1).values
        index = F.pad(kept + 1, (1, 0))
        with torch.autocast(a.device, torch.bfloat16, enabled=a.precision == "bf16"):
            target = self.fixed if a.part == "student" else self.targets(index)
            if a.part == "teacher":
                return
            self.student.patch_drop.kept = kept
            tokens = self.student.head(self.student.forward_features(self.images))
            loss = -F.cosine_similarity(tokens.float(), target.float(), dim=-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 3.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--part", default="all", choices=["all", "student", "teacher"])
    p.add_argument("--student", default="eva02_base_patch14_224")
    p.add_argument("--teacher", default="vit_large_patch14_clip_224")
    p.add_argument("--width", type=int, default=768, help="of the joint space")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--ratio", type=float, default=0.4)
    p.add_argument("--precision", default="bf16", choices=["bf16", "f32"])
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--profile", action="store_true")
    a = p.parse_args()
    on_gpu = a.device == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    torch.set_num_threads(a.threads)
    peer = Peer(a)
    for _ in range(2):
        peer.step()
    seconds = []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(a.steps):
        wait()
        began = time.perf_counter()
        peer.step()
        wait()
        seconds.append(time.perf_counter() - began)
    if a.profile:
        kinds = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[kinds.CUDA if on_gpu else kinds.CPU]) as profile:
            peer.step()
            wait()
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=order, row_limit=25))
    print(json.dumps({
        "images_per_second": a.batch / statistics.median(seconds),
        "part": a.part, "batch": a.batch, "precision": a.precision, "threads": a.threads,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "torch": torch.__version__, "timm": timm.__version__,
    }))


if __name__ == "__main__":
    main()
