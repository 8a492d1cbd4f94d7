"""Views of images under other preprocessing than CLIP's: `python pixels_modes.py` rewrites `pixels/modes`. Made with open_clip
3.3.0, timm 1.0.31, transformers 5.23, torchvision 0.28.0, Pillow 13.0.0.

    NAME.png       images of every mode that matters: tall, wide with a palette, little alpha, 16-bit gray
    cases.json     a list of [library, configuration in its words, images]
    N.rgb          of the images of the Nth case, every 4th row of the view at 32 pixels that the library's own transform,
                   made from this configuration, gives: bytes [images, 8, 32, 3]
"""

import io
import json
import shutil

import numpy as np
import open_clip.transform
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision import transforms
from transformers import CLIPImageProcessor

from data import picture
from pixels import HERE, png

SIZE = 32
MODES = HERE / "modes"
ALL = ["tall", "palette", "low", "dark"]
NO_PALETTE = ["tall", "low", "dark"]


def images():
    rng = np.random.default_rng(11)
    low = picture(50, 34, 4, 5) // [1, 1, 1, 50]
    return {
        "tall": png((rng.random((90, 39, 3)) < 0.5) * np.uint8(255), 8, 2),
        "palette": png(picture(61, 24, 1, 3) >> 4, 4, 3, palette=rng.integers(0, 256, (16, 3), dtype=np.uint8)),
        "low": png(low, 8, 6),
        "dark": png(picture(29, 45, 1, 8).astype(np.uint16) * 2, 16, 0),
    }


CASES = [
    ("open_clip", {"interpolation": "bilinear", "resize_mode": "shortest"}, ALL),
    ("open_clip", {"interpolation": "bicubic", "resize_mode": "squash"}, ALL),
    # torchvision fills a palette image with an entry of the palette.
    ("open_clip", {"resize_mode": "longest", "fill_color": 127}, NO_PALETTE),
    ("timm", {"crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"}, ALL),
    ("timm", {"crop_pct": 0.875, "interpolation": "bilinear"}, ALL),
    ("timm", {"crop_pct": 1.0, "crop_mode": "border", "interpolation": "lanczos"}, ALL),
    ("timm", {"crop_pct": 0.8, "crop_mode": "border", "interpolation": "nearest"}, ALL),
    ("timm", {"crop_pct": 0.95, "crop_mode": "squash", "interpolation": "hamming"}, ALL),
    ("timm", {"crop_pct": 0.96, "interpolation": "box"}, ALL),
    ("hf", {"size": {"shortest_edge": 37}, "crop_size": {"height": SIZE, "width": SIZE}, "resample": 3}, ALL),
    ("hf", {"size": SIZE, "crop_size": SIZE, "resample": 2}, ALL),
    ("hf", {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False, "resample": 3}, ALL),
]
# Of the small nets in `families`, whose configurations these are laid into; timm fills with the mean.
MEAN = {"timm": [0.48145466, 0.4578275, 0.40821073]}


def transform(library, config):
    """The library's own, from a Pillow image to bytes [32, 32, 3]."""
    if library == "open_clip":
        cfg = open_clip.transform.PreprocessCfg(**{"size": SIZE, **config})
        steps = open_clip.transform.image_transform_v2(cfg, is_train=False).transforms
        steps = transforms.Compose([step for step in steps if not isinstance(step, (transforms.ToTensor, transforms.Normalize))])
        return lambda image: np.asarray(steps(image))
    if library == "timm":
        cfg = resolve_data_config(pretrained_cfg={"input_size": [3, SIZE, SIZE], "mean": MEAN["timm"], **config})
        steps = create_transform(**cfg, normalize=False)
        # Its data sets and its examples make images RGB first.
        return lambda image: steps(image.convert("RGB")).permute(1, 2, 0).numpy()
    processor = CLIPImageProcessor(**config, do_rescale=False, do_normalize=False)
    return lambda image: np.asarray(processor(image)["pixel_values"][0]).transpose(1, 2, 0).astype(np.uint8)


if __name__ == "__main__":
    shutil.rmtree(MODES, ignore_errors=True)
    MODES.mkdir()
    files = images()
    for name, contents in files.items():
        (MODES / f"{name}.png").write_bytes(contents)
    (MODES / "cases.json").write_text("[\n" + ",\n".join("  " + json.dumps(case) for case in CASES) + "\n]\n")
    for i, (library, config, names) in enumerate(CASES):
        apply = transform(library, config)
        views = [apply(Image.open(io.BytesIO(files[name]))) for name in names]
        assert all(view.shape == (SIZE, SIZE, 3) and view.dtype == np.uint8 for view in views)
        (MODES / f"{i}.rgb").write_bytes(b"".join(view[::4].tobytes() for view in views))
