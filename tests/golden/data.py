"""Reference values of uta-data, from Pillow, torchvision and open_clip: `python data.py` rewrites the folder `data`.

Made with Pillow 13.0.0, torchvision 0.28.0, open_clip_torch 3.3.0.

    decode/NAME.{png,gif,webp,jpg}   images of every kind, and NAME.rgb, the bytes [29, 37, 3] of Image.convert("RGB")
    jpeg/CHROMA.jpg                  baseline JPEGs of 61 x 43, and CHROMA-N.rgb, the bytes of Pillow's draft at 1 / N
    resize/picture.png               97 x 61 pixels, and what torchvision makes of it:
    resize/eval-S.rgb                Resize(S, BICUBIC) and CenterCrop(S), bytes [S, S, 3]
    resize/crop-L-T-W-H-S.rgb        crop(L, T, W, H) resized to S, bicubic, rows first

Pillow 13 resizes columns first where the height shrinks much more than the width (python-pillow/Pillow#9549). Before, it
always took rows first, as the published networks saw their images; crops are therefore resized in two explicit steps.
    jitter/NAME.rgb                  adjust_* of resize/eval-32.rgb as a uint8 tensor
    draws.json                       the first words of the counter-based generator, written a second time here
    crops.json                       RandomResizedCrop.get_params, its draws replaced by the generator's
    tokens.json                      texts and their ids, for CLIP's vocabulary and for its first merges only
    lines.json                       what tokens.py writes
"""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip.tokenizer
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

import tokens as lines

HERE = Path(__file__).parent / "data"
BICUBIC = InterpolationMode.BICUBIC


def picture(width, height, channels, seed):
    """Slopes, edges and noise, so that every part of a decoder and a filter shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = []
    for c in range(channels):
        slope = 127 + 100 * np.sin(x / (5 + 3 * c) + c) * np.cos(y / (7 - c))
        edge = np.where((x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2, 60 * (c - 1), 0)
        planes.append(slope + edge + rng.normal(0, 12, (height, width)))
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def decode():
    folder = HERE / "decode"
    folder.mkdir()
    rgb = Image.fromarray(picture(37, 29, 3, 0))
    rgba = Image.fromarray(picture(37, 29, 4, 1), "RGBA")
    gray = Image.fromarray(picture(37, 29, 1, 2)[..., 0])
    palette = rgb.quantize(50)
    clear = palette.copy()
    clear.info["transparency"] = 7
    images = {
        "rgb.png": (rgb, {}),
        "rgba.png": (rgba, {}),
        "gray.png": (gray, {}),
        "gray-alpha.png": (rgba.convert("LA"), {}),
        "palette.png": (palette, {}),
        "palette-transparent.png": (clear, {"transparency": 7}),
        "bilevel.png": (gray.convert("1"), {}),
        "palette.gif": (palette, {}),
        "palette-transparent.gif": (clear, {"transparency": 7}),
        "lossless.webp": (rgba, {"lossless": True, "exact": True}),
        "lossy.webp": (rgb, {"quality": 80}),
        "lossy-alpha.webp": (rgba, {"quality": 80, "exact": True}),
        "444.jpg": (rgb, {"quality": 90, "subsampling": 0}),
        "420.jpg": (rgb, {"quality": 90, "subsampling": 2}),
        "progressive.jpg": (rgb, {"quality": 85, "progressive": True}),
        "gray.jpg": (gray, {"quality": 90}),
        "cmyk.jpg": (rgb.convert("CMYK"), {"quality": 95, "subsampling": 0}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    for path in sorted(folder.iterdir()):
        path.with_name(path.name + ".rgb").write_bytes(Image.open(path).convert("RGB").tobytes())


def jpeg():
    """Baseline JPEGs of every chroma, and Pillow's pixels of them, whole and by `draft` at 1/2, 1/4 and 1/8."""
    import simplejpeg

    folder = HERE / "jpeg"
    folder.mkdir()
    image = picture(61, 43, 3, 7)
    for chroma in ["444", "422", "440", "420", "gray"]:
        space = ("GRAY", image[..., :1]) if chroma == "gray" else ("RGB", image)
        sampling = "444" if chroma == "gray" else chroma
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(space[1]), 88, space[0], sampling)
        (folder / f"{chroma}.jpg").write_bytes(data)
    Image.fromarray(image).save(folder / "restart.jpg", quality=60, subsampling=2, restart_marker_blocks=3, optimize=True)
    for path in sorted(folder.iterdir()):
        for shrink in [1, 2, 4, 8]:
            opened = Image.open(path)
            width, height = -(-61 // shrink), -(-43 // shrink)
            if shrink > 1:
                opened.draft("RGB", (61 // shrink, 43 // shrink))
            pixels = opened.convert("RGB")
            assert pixels.size == (width, height)
            path.with_name(f"{path.stem}-{shrink}.rgb").write_bytes(pixels.tobytes())


def resize():
    folder = HERE / "resize"
    folder.mkdir()
    image = Image.fromarray(picture(97, 61, 3, 4))
    image.save(folder / "picture.png", optimize=True)
    for size in [32, 48, 61, 80]:
        view = transforms.Compose([transforms.Resize(size, BICUBIC), transforms.CenterCrop(size)])
        (folder / f"eval-{size}.rgb").write_bytes(view(image).tobytes())
    for left, top, width, height, size in [(0, 0, 97, 61, 32), (13, 7, 40, 50, 32), (60, 20, 21, 17, 40)]:
        crop = F.crop(image, top, left, height, width)
        view = crop.resize((size, height), Image.BICUBIC).resize((size, size), Image.BICUBIC)
        if height <= width:
            # Where the order is not in question, the two steps are torchvision's one.
            assert view.tobytes() == F.resize(crop, [size, size], BICUBIC).tobytes()
        (folder / f"crop-{left}-{top}-{width}-{height}-{size}.rgb").write_bytes(view.tobytes())


def jitter():
    folder = HERE / "jitter"
    folder.mkdir()
    raw = np.frombuffer((HERE / "resize/eval-32.rgb").read_bytes(), np.uint8).reshape(32, 32, 3)
    tensor = torch.from_numpy(raw.copy()).permute(2, 0, 1)
    for name, view in {
        "brightness-1.4": F.adjust_brightness(tensor, 1.4),
        "brightness-0.6": F.adjust_brightness(tensor, 0.6),
        "contrast-1.4": F.adjust_contrast(tensor, 1.4),
        "contrast-0.6": F.adjust_contrast(tensor, 0.6),
        "saturation-1.4": F.adjust_saturation(tensor, 1.4),
        "saturation-0.6": F.adjust_saturation(tensor, 0.6),
        "saturation-0": F.rgb_to_grayscale(tensor, 3),
        "hue-0.2": F.adjust_hue(tensor, 0.2),
        "hue--0.1": F.adjust_hue(tensor, -0.1),
    }.items():
        (folder / f"{name}.rgb").write_bytes(view.permute(1, 2, 0).contiguous().numpy().tobytes())


WORD = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


class Rng:
    """uta_data::rng::Rng, from its description: SplitMix64 started at a hash of seed, purpose and counters."""

    def __init__(self, seed, purpose, counters):
        self.state = mix(seed)
        for word in [purpose, len(counters), *counters]:
            self.state = mix(((self.state + STEP) & WORD) ^ mix((word + STEP) & WORD))

    def next(self):
        self.state = (self.state + STEP) & WORD
        return mix(self.state)

    def uniform(self):
        return (self.next() >> 11) / (1 << 53)

    def below(self, n):
        while True:
            product = self.next() * n
            if product & WORD >= ((1 << 64) - n) % n:
                return product >> 64


AUGMENT = 2


def draws():
    keys = [(0, 1, []), (1, 1, []), (1, 2, []), (88, AUGMENT, [0, 5]), (88, AUGMENT, [5, 0]), (WORD, 7, [WORD, 1, 2])]
    rows = []
    for seed, purpose, counters in keys:
        rng = Rng(seed, purpose, counters)
        words = [str(rng.next()) for _ in range(3)]
        row = {"seed": str(seed), "purpose": purpose, "counters": [str(c) for c in counters], "words": words}
        rows.append(row | {"uniform": rng.uniform(), "below_10": rng.below(10)})
    (HERE / "draws.json").write_text(json.dumps(rows, indent=1))


def crops():
    """torchvision's own function, with torch's generator replaced by ours."""
    torch.set_default_dtype(torch.float64)
    empty, randint = torch.empty, torch.randint
    rows = []
    sizes = [(64, 64), (97, 61), (500, 375), (10, 400), (400, 10), (1, 1), (3, 2)]
    for width, height in sizes:
        image = Image.new("RGB", (width, height))
        for scale, ratio in [((0.2, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (0.5, 2.0))]:
            for sample in range(8):
                rng = Rng(88, AUGMENT, [0, sample])

                class Draw:
                    def uniform_(self, low, high):
                        return torch.tensor([float(low) + (float(high) - float(low)) * rng.uniform()])

                torch.empty = lambda *_: Draw()
                torch.randint = lambda low, high, size: torch.tensor([low + rng.below(high - low)])
                top, left, h, w = transforms.RandomResizedCrop.get_params(image, scale, ratio)
                rows.append([width, height, *scale, *ratio, sample, left, top, w, h])
    torch.empty, torch.randint = empty, randint
    lines = ",\n".join(json.dumps(row) for row in rows)
    (HERE / "crops.json").write_text(f"[\n{lines}\n]\n")


TEXTS = [
    "", "   ", "a diagram", "a dog", "a photo of a cat", "a photo of the small tench.", "itap of a great white shark.",
    "2023", "Hello, World!", "it's they're I've we'll I'd don't", "A PHOTO OF THE CLEAN Dog",
    "tabs\tand\nnew  lines", "rock &amp; roll", "&lt;b&gt;bold&lt;/b&gt;", "&amp;lt;twice&amp;gt;", "&#39;quoted&#39;",
    "na\u00efve caf\u00e9 \u00fcber stra\u00dfe", "cafe\u0301 decomposed", "\u201ccurly\u201d \u2018quotes\u2019",
    "\u03a3\u03a5\u03a3 \u03b1\u03b2\u03b3", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0416\u0438\u0437\u043d\u044c", "\u0130stanbul",
    "\uff26\uff55\uff4c\uff4c\uff0c width", "\ufb01ligature \ufb02ow", "x" * 300, "word " * 100, "...!!!???", "a1b2c3 4.5e-6",
    "snake_case-and-dashes/slashes", "<start_of_text> inside <end_of_text>", "\u00bd \u00b2 \u2167", "zero\x00\x07control",
    "non\u00a0breaking", "\ufeffmark first", "price: $9.99 (50% off)", "supercalifragilisticexpialidocious",
]


def tokens():
    rows = []
    for vocab_size, context in [(49408, 77), (49408, 16), (8192, 32)]:
        tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=context)
        merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)[: vocab_size - 512 - 2]
        vocab = list(tokenizer.encoder)[:512] + ["".join(m) for m in merges] + ["<start_of_text>", "<end_of_text>"]
        tokenizer.encoder = dict(zip(vocab, range(len(vocab))))
        tokenizer.bpe_ranks = dict(zip(merges, range(len(merges))))
        tokenizer.sot_token_id, tokenizer.eot_token_id = vocab_size - 2, vocab_size - 1
        for text in TEXTS:
            ids = tokenizer([text])[0].tolist()
            while ids and ids[-1] == 0:
                ids.pop()
            rows.append({"vocab_size": vocab_size, "context": context, "text": text, "ids": ids})
    (HERE / "tokens.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    decode()
    jpeg()
    resize()
    jitter()
    draws()
    crops()
    tokens()
    lines.write()
