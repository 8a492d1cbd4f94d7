"""What timm, torchvision and Pillow do and draw in training: `python augment.py` rewrites the folder `augment`.

Made with timm 1.0.31, torchvision 0.28.0, Pillow 13.0.0, numpy 2.

    flat.rgb         16 x 12 pixels of few levels: what stretches histograms meets its special cases
    ops.json         timm's RandAugment operations on that and on data/decode/rgb.png: rows of [image, operation, increasing,
                     magnitude, negated, filter, first 16 digits of the SHA-256 of the bytes]
    crop-FILTER.rgb  crop (13, 7, 40, 50) of data/resize/picture.png at 32 x 32, rows first
    mix.json         timm's FastCollateMixup on 4 images of 6 x 6, its draws replaced by given ones
    photometric.json mmsegmentation's PhotoMetricDistortion of data/decode/rgb.png, from its description and OpenCV 5.0: rows of
                     [brightness, contrast, contrast first, saturation, hue, each fifth byte]
    laws.json        what is drawn: for each parameter the number of draws, and points [x, share of draws at most x]

Pillow 13 refuses to keep 0 bits of a level, which timm asks for at the largest magnitude; before, it made black of it.
"""

import hashlib
import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, mixup
from timm.data.mixup import FastCollateMixup, Mixup
from timm.data.random_erasing import RandomErasing
from torchvision import transforms

from data import HERE as DATA
from data import picture

HERE = Path(__file__).parent / "augment"
FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
FILL = tuple(min(255, round(255 * x)) for x in MEAN)
MOVING = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
PLAIN = {"AutoContrast", "Equalize", "Invert"}


def flat():
    y, x = np.mgrid[0:12, 0:16]
    return np.stack([100 + (x + y) % 7, np.full_like(x, 33), np.where(x > 3, 255, 3 * y)], -1).astype(np.uint8)


def ops():
    (HERE / "flat.rgb").write_bytes(flat().tobytes())
    images = {"flat": Image.fromarray(flat()), "rgb": Image.open(DATA / "decode/rgb.png").convert("RGB")}
    rows, seen = [], set()
    for increasing in [True, False]:
        for name in auto_augment.rand_augment_choices("", increasing):
            magnitudes = [9] if name in PLAIN else [0, 0.4, 3.3, 5, 7.3, 9.63, 10, 13]
            for magnitude in magnitudes:
                for negate in [False, True]:
                    auto_augment._randomly_negate = lambda v: -v if negate else v
                    level = auto_augment.LEVEL_TO_ARG[name]
                    args = level(magnitude, {}) if level else ()
                    if (name.removesuffix("Increasing"), args) in seen:
                        continue
                    seen.add((name.removesuffix("Increasing"), args))
                    for filter in FILTERS if name in MOVING else ["bicubic"]:
                        for key, image in images.items():
                            if name.startswith("Posterize") and args[0] < 1:
                                out = Image.new("RGB", image.size)
                            else:
                                kwargs = {"resample": FILTERS[filter], "fillcolor": FILL}
                                out = auto_augment.NAME_TO_OP[name](image, *args, **kwargs)
                            digest = hashlib.sha256(out.tobytes()).hexdigest()[:16]
                            kind = name.removesuffix("Increasing").removesuffix("Rel")
                            rows.append([key, kind, increasing, magnitude, negate, filter, digest])
    lines = ",\n".join(json.dumps(row) for row in rows)
    (HERE / "ops.json").write_text(f"[\n{lines}\n]\n")


def crops():
    crop = Image.open(DATA / "resize/picture.png").convert("RGB").crop((13, 7, 53, 57))
    for name, filter in FILTERS.items():
        view = crop.resize((32, 50), filter).resize((32, 32), filter)
        (HERE / f"crop-{name}.rgb").write_bytes(view.tobytes())


def mix():
    """Shares and boxes [left, top, width, height] of the images that are mixed, for every mode."""
    size, classes = 6, 5
    images = [picture(size, size, 3, 20 + i) for i in range(4)]
    labels = [3, 0, 3, 4]
    boxes = [[1, 2, 4, 3], [0, 0, 6, 1], [2, 2, 0, 3], [3, 0, 3, 6]]
    cases = []
    for mode, n in [("batch", 1), ("pair", 2), ("elem", 4)]:
        for cut in [False, True]:
            drawn = [0.3, 0.9125, 0.5, 0.0042][:n]
            queue = list(boxes)

            def box(shape, lam, **_):
                left, top, width, height = queue.pop(0)
                return (top, top + height, left, left + width), 1 - width * height / size**2

            mixup.cutmix_bbox_and_lam = box
            mixer = FastCollateMixup(1.0, 1.0, mode=mode, label_smoothing=0.1, num_classes=classes)
            mixer._params_per_batch = lambda: (drawn[0], cut)
            mixer._params_per_elem = lambda _: (np.array(drawn, np.float32), np.full(n, cut))
            batch = [(image.transpose(2, 0, 1).copy(), label) for image, label in zip(images, labels)]
            pixels, target = mixer(batch)
            cases.append({
                "mode": mode,
                "mixes": boxes[:n] if cut else drawn,
                "pixels": pixels.permute(0, 2, 3, 1).flatten().tolist(),
                "target": target.double().flatten().tolist(),
            })
    pixels = np.stack(images).flatten().tolist()
    whole = {"size": size, "classes": classes, "smoothing": 0.1, "labels": labels, "pixels": pixels, "cases": cases}
    (HERE / "mix.json").write_text(json.dumps(whole) + "\n")


LAWS = defaultdict(list)


def distort(image, brightness, contrast, first, saturation, hue):
    convert = lambda x, alpha=1, beta=0: np.clip(x.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)
    if brightness is not None:
        image = convert(image, beta=brightness)
    if contrast is not None and first:
        image = convert(image, contrast)
    if saturation is not None:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        image[..., 1] = convert(image[..., 1], saturation)
        image = cv2.cvtColor(image, cv2.COLOR_HSV2RGB)
    if hue is not None:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        image[..., 0] = (image[..., 0].astype(int) + hue) % 180
        image = cv2.cvtColor(image, cv2.COLOR_HSV2RGB)
    if contrast is not None and not first:
        image = convert(image, contrast)
    return image


def photometric():
    # One row, and some pixels more: OpenCV cuts the levels that it makes of HSV, but rounds those of the last few of a row.
    image = np.array(Image.open(DATA / "decode/rgb.png").convert("RGB")).reshape(1, -1, 3)
    image = np.concatenate([image, image[:, :64]], 1)
    rows = []
    for case in [
        (17.25, None, False, None, None), (-31.5, 1.37, True, None, None), (None, 0.51, False, 1.45, None),
        (None, None, False, 0.6, None), (None, None, False, None, 17), (None, None, False, None, -18),
        (5.5, 1.2, True, 1.3, -7), (5.5, 1.2, False, 1.3, 9),
    ]:
        rows.append([*case, distort(image, *case)[:, :-64].flatten()[::5].tolist()])
    (HERE / "photometric.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    for _ in range(20000):
        draw = lambda low, high: np.random.uniform(low, high) if np.random.randint(2) else 1000
        LAWS["photometric brightness"].append(draw(-32, 32))
        LAWS["photometric first"].append(np.random.randint(2))
        LAWS["photometric contrast"].append(draw(0.5, 1.5))
        LAWS["photometric saturation"].append(draw(0.5, 1.5))
        LAWS["photometric hue"].append(np.random.randint(-18, 18) if np.random.randint(2) else 1000)


def rand_augment():
    drawn = []

    def record(name):
        def op(image, *args, resample, **_):
            drawn.append((name, float(args[0]) if args else 0.0, auto_augment._interpolation({"resample": resample})))
            return image
        return op

    names = auto_augment.rand_augment_choices("", False)
    plain = [name.removesuffix("Rel") for name in names]
    for key in auto_augment.NAME_TO_OP:
        auto_augment.NAME_TO_OP[key] = record(key.removesuffix("Increasing").removesuffix("Rel"))
    for policy in ["rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.8-mstd101", "rand-m11-mstd2-mmax12"]:
        transform = auto_augment.rand_augment_transform(policy, {"img_mean": FILL})
        for _ in range(60000):
            drawn.clear()
            transform(None)
            LAWS[f"{policy} operations"].append(len(drawn))
            for name, amount, filter in drawn:
                LAWS[f"{policy} operation"].append(plain.index(name))
                if name not in PLAIN:
                    LAWS[f"{policy} {name}"].append(amount)
                LAWS[f"{policy} bicubic"].append(filter == Image.BICUBIC)


def crop_and_colour():
    image = Image.new("RGB", (500, 375))
    for _ in range(20000):
        top, left, h, w = transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        for key, value in {"area": w * h, "aspect": w / h, "left": left, "top": top}.items():
            LAWS[f"crop {key}"].append(value)
        order, *factors = transforms.ColorJitter.get_params((0.6, 1.4), (0.7, 1.3), (0.0, 2.2), (-0.1, 0.1))
        LAWS["jitter order"].append(int("".join(map(str, order.tolist()))))
        for key, value in zip(["brightness", "contrast", "saturation", "hue"], factors):
            LAWS[f"jitter {key}"].append(value)


def erasing():
    size = 64
    for count in [1, 3]:
        eraser = RandomErasing(0.25, mode="const", max_count=count, device="cpu")
        for _ in range(40000):
            erased = (eraser(torch.ones(1, size, size))[0] == 0).numpy()
            LAWS[f"erasing {count} area"].append(erased.sum())
            if count == 1 and erased.any():
                (top, bottom), (left, right) = [np.flatnonzero(erased.any(axis))[[0, -1]] for axis in [1, 0]]
                height, width = bottom - top + 1, right - left + 1
                for key, value in {"aspect": height / width, "top": top, "left": left}.items():
                    LAWS[f"erasing {key}"].append(value)
    for mode, n in [("pixel", 400), ("rand", 4000)]:
        eraser = RandomErasing(1.0, mode=mode, device="cpu")
        for _ in range(n):
            noise = eraser(torch.full((3, size, size), 99.0)).flatten(1).T.numpy()
            noise = noise[noise[:, 0] != 99.0]
            noise = np.clip(np.round(255 * (MEAN + STD * noise)), 0, 255)
            if mode == "rand":
                assert (noise == noise[0]).all()
                noise = noise[:1]
            LAWS[f"erasing {mode} red"].extend(noise[:100, 0])
            LAWS[f"erasing {mode} blue"].extend(noise[:100, 2])


def mixing():
    size = 64
    settings = {
        "mixup 0.8": {"mixup_alpha": 0.8},
        "mixup 0.1": {"mixup_alpha": 0.1},
        "mixup 3": {"mixup_alpha": 3.0, "prob": 0.7},
        "cutmix 1": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
        "cutmix minmax": {"mixup_alpha": 0.0, "cutmix_minmax": (0.2, 0.8)},
        "both": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 0.8, "switch_prob": 0.3},
    }
    for name, setting in settings.items():
        mixer = Mixup(**setting)
        for _ in range(30000):
            share, cut = mixer._params_per_batch()
            if cut:
                (top, bottom, left, right), share = cutmix((3, size, size), share, mixer.cutmix_minmax)
                for key, value in {"width": right - left, "top": top, "left": left}.items():
                    LAWS[f"{name} {key}"].append(value)
            LAWS[f"{name} share"].append(share)


cutmix = mixup.cutmix_bbox_and_lam


def laws():
    rows = {}
    for name, draws in LAWS.items():
        draws = np.sort(np.array(draws, np.float64))
        points = np.unique(draws)
        if len(points) > 24:
            points = np.unique(draws[np.linspace(0, len(draws) - 1, 21).astype(int)])
        shares = np.searchsorted(draws, points, side="right") / len(draws)
        rows[name] = {"n": len(draws), "points": [[float(x), round(float(p), 5)] for x, p in zip(points, shares)]}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    (HERE / "laws.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    ops()
    crops()
    mix()
    mixup.cutmix_bbox_and_lam = cutmix
    # The negation was replaced above.
    auto_augment._randomly_negate = lambda v: -v if random.random() > 0.5 else v
    rand_augment()
    crop_and_colour()
    erasing()
    mixing()
    photometric()
    laws()
