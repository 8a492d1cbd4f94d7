"""Our exports are loaded by the programs that they are for, by the lines that `uta weights convert` prints, and give our
numbers there:

    cargo run -p uta-model --example random -- NETS uta-b14 eva02-b-16 vit-b-32
    python exports.py UTA OUT EVA NETS/*

writes every net of `families/`, some of them again with a vocabulary that a tokeniser has, `assets/clip-emoji` and the named
folders in every layout below OUT by the program UTA, runs the printed lines, and compares. A net of `families/` is held against
the original's own numbers (`expected.safetensors`); one with a tokeniser against `uta embed`, from pictures and texts on:
processor, tokeniser and, in transformers, the zero-shot pipeline included. EVA is the folder `EVA-CLIP/rei` of
github.com/baaivision/EVA. Differences are the largest of embeddings of unit length. It ends with an error where one is above
1e-6; of pictures that must be resized first it is printed only, because a processor of tensors rounds pixels otherwise.

Run with torch 2.13.0, open_clip_torch 3.3.0, timm 1.0.31, transformers 5.24.0, EVA at 5623d08.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
SCRATCH = "embedded.safetensors"
TEXTS = ["a photo of a cat", "itap of the small tench.", "it's 2023!", "A Diagram, of  things & co"]
LAYOUTS = ["uta", "open-clip", "eva-clip", "timm", "hf"]
MOST = 1e-6
WIDENED = [
    "hf_clip",
    "official_bige_clip",
    "official_eva01_clip",
    "official_eva02_clip",
    "official_uta",
    "open_clip",
    "open_clip_eva02",
    "open_clip_quickgelu",
]
unit = lambda x: torch.nn.functional.normalize(x.detach().float(), dim=-1)


def families():
    """Names and paths, with the architecture where shapes don't tell."""
    for folder in sorted((HERE / "families").iterdir()):
        if folder.name != "hf_sharded":
            lone = [folder / name for name in ("weights.safetensors", "weights.pt") if (folder / name).is_file()]
            yield folder.name, (lone or [folder])[0], folder / "arch.json"


def widened(uta, out, name, path, arch, vocabulary):
    """The net with random embeddings of a vocabulary that a tokeniser has."""
    folder = out / name / "net"
    command = [uta, "weights", "convert", path, "--to", "uta", "--dtype", "f32", "--out", folder]
    subprocess.run(command + (["--arch", arch] if arch.is_file() else []), check=True, stdout=subprocess.DEVNULL)
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    text, draw = config["text"], torch.Generator().manual_seed(0)
    text["vocab_size"], text["context_length"] = vocabulary, 77
    for key, rows in [("text.token_embedding.weight", vocabulary), ("text.positional_embedding", 77)]:
        weights[key] = torch.randn(rows, text["width"], generator=draw) * 0.3
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def pictures(folder, size):
    """Two that are as large as the net's, and one that must be resized."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for name, shape in [("a", (size, size)), ("b", (size, size)), ("wide", (5 * size, 7 * size))]:
        coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return {path.stem: Image.open(path).convert("RGB") for path in sorted(folder.iterdir())}


def load(layout, lines):
    """What the printed lines leave: pictures and texts to embeddings, and tensors to embeddings."""
    found = {}
    sys.modules.pop("uta_model", None)
    exec("\n".join(lines), found)
    if "model" not in found:
        return None
    model = found["model"]
    if layout != "uta":
        model.eval()
    else:
        return model.image, model.text, model.pixels, model.tokens, None
    if layout in ("open-clip", "eva-clip"):
        return model.encode_image, model.encode_text, found["preprocess"], found.get("tokenizer"), None
    if layout == "timm":
        import timm

        settings = timm.data.resolve_model_data_config(model)
        return model, None, timm.data.create_transform(**settings, is_training=False), None, None
    processor = found["processor"]
    image = lambda x: model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
    text = lambda x: model.text_projection(model.text_model(input_ids=x).pooler_output)
    pixels = lambda picture: processor(images=picture, return_tensors="pt").pixel_values[0]
    tokens = lambda texts: processor(text=texts, return_tensors="pt", padding=True, truncation=True).input_ids
    return image, text, pixels, tokens, found.get("classify")


def embedded(uta, out, folder, *of):
    file = out / SCRATCH
    subprocess.run([uta, "embed", "--model", folder, *of, "--device", "cpu", "--out", file], check=True, capture_output=True)
    return unit(load_file(file)["embeddings"])


@torch.no_grad()
def check(uta, out, folder, layout, lines, expected, size):
    loaded = load(layout, lines)
    if loaded is None:
        return {}, {}
    image, text, pixels, tokens, classify = loaded
    error = lambda found, wanted: (unit(found) - unit(wanted)).abs().max().item()
    if expected is not None:
        errors = {"image": error(image(expected["input.images"]), expected["output.image"])}
        if text is not None and "input.tokens" in expected:
            errors["text"] = error(text(expected["input.tokens"]), expected["output.text"])
        return errors, {}
    shown = pictures(out / "pictures" / str(size), size)
    wanted = embedded(uta, out, folder, "--images", out / "pictures" / str(size))
    found = torch.cat([image(pixels(picture)[None]) for picture in shown.values()])
    errors = {"picture": error(found[:2], wanted[:2])}
    loose = {"picture resized": error(found[2:], wanted[2:])}
    if text is not None and tokens is not None:
        (out / "texts").write_text("\n".join(TEXTS) + "\n")
        words = embedded(uta, out, folder, "--texts", out / "texts")
        errors["text"] = error(text(tokens(TEXTS)), words)
        if classify is not None:
            scale = load_file(folder / "model.safetensors")["logit_scale"].exp()
            ours = (scale * wanted[0] @ words.T).softmax(-1)
            scores = classify(shown["a"], candidate_labels=TEXTS, hypothesis_template="{}")
            scores = torch.tensor([next(s["score"] for s in scores if s["label"] == text) for text in TEXTS])
            errors["pipeline"] = (scores - ours).abs().max().item()
    return errors, loose


def main(uta, out, eva, *more):
    uta, out = Path(uta).resolve(), Path(out).resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    sys.path.insert(0, str(Path(eva).resolve()))
    nets = []
    for name, path, arch in families():
        folder = path if path.is_dir() else path.parent
        nets.append((name, path, arch, load_file(folder / "expected.safetensors")))
        for vocabulary in (49408, 2000) if name in WIDENED else ():
            label = f"{name}_{vocabulary}"
            nets.append((label, widened(uta, out, label, path, arch, vocabulary), Path(), None))
    for path in [HERE.parent.parent / "assets/clip-emoji", *map(Path, more)]:
        nets.append((path.name, path, Path(), None))
    worst = {}
    for name, path, arch, expected in nets:
        for layout in LAYOUTS:
            folder = out / name / layout
            command = [uta, "weights", "convert", path, "--to", layout, "--dtype", "f32", "--json", "--out", folder]
            done = subprocess.run(command + (["--arch", arch] if arch.is_file() else []), capture_output=True, text=True)
            if done.returncode:
                print(f"{name} as {layout}: refused, {re.sub('^uta: ', '', done.stderr.strip())}", flush=True)
                continue
            lines = json.loads(done.stdout)["python"]
            size = json.loads(subprocess.check_output([uta, "weights", "inspect", folder, "--json"]))["config"]["vision"]["image_size"]
            errors, loose = check(uta, out, folder, layout, lines, expected, size)
            shown = ", ".join(f"{what} {e:.1e}" for what, e in (errors | loose).items()) or "loads"
            print(f"{name} as {layout}: {shown}", flush=True)
            shutil.rmtree(folder)
            for what, e in errors.items():
                worst[layout, what] = max(worst.get((layout, what), 0.0), e)
    for (layout, what), e in sorted(worst.items()):
        print(f"largest, {layout} {what}: {e:.1e}")
    assert all(e < MOST for e in worst.values()), "differs"


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(*sys.argv[1:])
