"""`uta eval zeroshot` beside its peer: open_clip's model and transform, torchvision's ImageFolder, CLIP_benchmark's loops.

    python embed.py make ViT-B-16 MODEL                  # a hub folder with random weights, for both
    python zeroshot.py MODEL IMAGENET UTA [bf16]         # IMAGENET: ImageNet's class folders, all or some; UTA: the program

Both sides decode, embed and score every image and build the classifier of the folders' classes in 80 templates, with two
threads, two decoding workers and batches of 64 images. The peer is timed without its start; `uta` as whole processes: the
images with a kept classifier, the classifier as the difference to a run that builds it. Prints one JSON object.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import open_clip
import torch
from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier
from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

SYNSETS = Path(__file__).parents[2] / "crates/uta-eval/data/imagenet.tsv"


def timed(work):
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def peer(folder, data, bf16):
    torch.set_num_threads(2)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    name = next(n for n in open_clip.list_models() if open_clip.get_model_config(n) == config)
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"), strict=True)
    model.eval()
    wnids = [line.split("\t")[0] for line in SYNSETS.read_text().splitlines()]
    dataset = ImageFolder(data, transform)
    names = [IMAGENET_CLASSNAMES[wnids.index(wnid)] for wnid in dataset.classes]
    templates = [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]
    tokenizer = open_clip.get_tokenizer(name)
    classifier, texts = timed(lambda: zero_shot_classifier(model, tokenizer, names, templates, "cpu", amp=bf16))
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, num_workers=2)
    (logits, _), images = timed(lambda: run_classification(model, classifier, loader, "cpu", amp=bf16))
    return logits.argmax(dim=1).tolist(), texts, images


def ours(program, folder, data, bf16):
    with tempfile.TemporaryDirectory() as scratch:
        predictions = Path(scratch) / "predictions.jsonl"
        command = [program, "eval", "zeroshot", "--model", folder, "--data", data, "--batch", "64", "--workers", "2",
                   "--precision", "bf16" if bf16 else "f32", "--cache", scratch, "--predictions", predictions, "--json"]
        run = lambda: subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
        _, first = timed(run)
        _, second = timed(run)
        rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    return [row["top5"][0] for row in rows], first - second, second


if __name__ == "__main__":
    folder, data, program = map(Path, sys.argv[1:4])
    bf16 = sys.argv[4:] == ["bf16"]
    labels, texts, images = ours(program, folder, data, bf16)
    theirs, peer_texts, peer_images = peer(folder, data, bf16)
    equal = sum(a == b for a, b in zip(labels, theirs, strict=True)) / len(labels)
    seconds = dict(uta_texts=texts, peer_texts=peer_texts, uta_images=images, peer_images=peer_images)
    print(json.dumps({
        "images": len(labels),
        "precision": "bf16" if bf16 else "f32",
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "classifier_ratio": round(peer_texts / texts, 2),
        "images_ratio": round(peer_images / images, 2),
        "equal_labels": equal,
    }))
