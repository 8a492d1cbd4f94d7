"""Images of every kind that Pillow reads, and evaluation views of photographs: `python pixels.py` rewrites the
folders below in `pixels`. Made with Pillow 13.0.0, torchvision 0.28.0, the photographs of scikit-image 0.26.

    decode/NAME        an image file, and NAME.rgb, the bytes [29, 37, 3] of Image.open(NAME).convert("RGB")
    view/NAME-S.rgb    Resize(S, BICUBIC), CenterCrop(S), convert("RGB") of decode/NAME, in this order (as open_clip has it)
    view/tall.png      an image that shrinks to less than half its height: columns are then resized first
    photo/NAME.webp    a part of a photograph, lossless, and NAME-S.rgb, every 24th row of its view, bytes [.., S, 3]
    photo/NAME.jpg     the same as JPEG, and NAME.jpg.rgb, every 16th row of its pixels
"""

import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from skimage import data
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from data import picture

HERE = Path(__file__).parent / "pixels"
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(samples, depth, colour, interlaced=False, palette=None, transparent=None):
    """[height, width, channels] samples; Pillow writes neither interlaced nor every depth."""
    height, width, channels = samples.shape

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def rows(part):
        out = b""
        for row in part.reshape(part.shape[0], -1):
            bits = np.unpackbits(row.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - depth :]
            out += b"\0" + np.packbits(bits.reshape(-1)).tobytes()
        return out

    passes = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [samples]
    body = b"".join(rows(part) for part in passes if part.size)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if palette is not None:
        out += chunk(b"PLTE", palette.tobytes())
    if transparent is not None:
        out += chunk(b"tRNS", transparent)
    return out + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")


def pillow(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def adobe(jpeg, transform):
    """The same JPEG with another colour transform in its Adobe segment, or without the segment."""
    at = jpeg.index(b"\xff\xee")
    length = struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
    segment = b"" if transform is None else jpeg[at : at + 15] + bytes([transform])
    return jpeg[:at] + segment + jpeg[at + 2 + length :]


def kinds():
    eight = picture(37, 29, 4, 7)
    wide = eight.astype(np.uint16) * 257 + np.arange(37, dtype=np.uint16)[None, :, None] * 5
    rng = np.random.default_rng(9)
    out = {}
    for depth in [1, 2, 4, 8, 16]:
        samples = (wide if depth == 16 else eight >> (8 - depth))[..., :1]
        for interlaced in [False, True]:
            out[f"gray{depth}{'i' if interlaced else ''}.png"] = png(samples, depth, 0, interlaced)
    out["gray16-dark.png"] = png(wide[..., :1] // 200, 16, 0)
    out["gray8-key.png"] = png(eight[..., :1], 8, 0, transparent=b"\0\x40")
    out["gray16-key.png"] = png(wide[..., :1], 16, 0, transparent=b"\0\x40")
    for depth in [1, 2, 4, 8]:
        palette = rng.integers(0, 256, (1 << depth, 3), dtype=np.uint8)
        samples = eight[..., :1] >> (8 - depth)
        out[f"palette{depth}.png"] = png(samples, depth, 3, palette=palette)
        out[f"palette{depth}-key.png"] = png(samples, depth, 3, True, palette, bytes([0, 128]))
    out["gray-alpha8.png"], out["gray-alpha16.png"] = png(eight[..., 2:], 8, 4), png(wide[..., 2:], 16, 4)
    out["gray-alpha8i.png"] = png(eight[..., 2:], 8, 4, True)
    out["rgb8.png"], out["rgb16.png"] = png(eight[..., :3], 8, 2), png(wide[..., :3], 16, 2)
    out["rgb8-key.png"] = png(eight[..., :3], 8, 2, transparent=struct.pack(">HHH", *eight[3, 3, :3]))
    out["rgb8i.png"], out["rgb16i.png"] = png(eight[..., :3], 8, 2, True), png(wide[..., :3], 16, 2, True)
    out["rgba8.png"], out["rgba16.png"] = png(eight, 8, 6), png(wide, 16, 6)
    out["rgba8i.png"] = png(eight, 8, 6, True)
    # So little alpha that a level of the weighted colour is fifty of the colour.
    low = eight // [1, 1, 1, 50]
    out["gray-alpha-low.png"], out["rgba-low.png"] = png(low[..., 2:], 8, 4), png(low, 8, 6)

    rgb, rgba = Image.fromarray(eight[..., :3]), Image.fromarray(eight)
    photo = Image.fromarray(data.chelsea()[100:129, 110:147])
    for name, subsampling in [("444", 0), ("422", 1), ("420", 2)]:
        out[f"{name}.jpg"] = pillow(photo, "JPEG", quality=90, subsampling=subsampling)
    out["420-progressive.jpg"] = pillow(photo, "JPEG", quality=90, subsampling=2, progressive=True)
    out["gray.jpg"] = pillow(photo.convert("L"), "JPEG", quality=90)
    out["gray-progressive.jpg"] = pillow(photo.convert("L"), "JPEG", quality=90, progressive=True)
    out["rgb.jpg"] = pillow(photo, "JPEG", quality=90, keep_rgb=True)
    cmyk = pillow(photo.convert("CMYK"), "JPEG", quality=92, subsampling=0)
    out["cmyk.jpg"], out["cmyk-ycck.jpg"], out["cmyk-plain.jpg"] = cmyk, adobe(cmyk, 2), adobe(cmyk, None)
    out["cmyk-420.jpg"] = pillow(photo.convert("CMYK"), "JPEG", quality=92, subsampling=2)
    exif = Image.Exif()
    exif[0x112] = 6
    out["turned.jpg"] = pillow(photo, "JPEG", quality=92, subsampling=0, exif=exif)
    out["restart.jpg"] = pillow(photo, "JPEG", quality=90, restart_marker_blocks=2)
    out["lossy.webp"] = pillow(photo, "WEBP", quality=85)
    out["lossy-alpha.webp"] = pillow(rgba, "WEBP", quality=85, exact=True)
    out["lossless.webp"] = pillow(rgb, "WEBP", lossless=True)
    out["lossless-alpha.webp"] = pillow(rgba, "WEBP", lossless=True, exact=True)
    out["moving.webp"] = pillow(rgb, "WEBP", lossless=True, save_all=True, append_images=[photo], duration=50)
    flat = rgb.quantize(60)
    clear = flat.copy()
    clear.info["transparency"] = 5
    out["still.gif"], out["clear.gif"] = pillow(flat, "GIF"), pillow(clear, "GIF", transparency=5)
    out["interlaced.gif"] = pillow(flat, "GIF", interlace=True)
    out["moving.gif"] = pillow(flat, "GIF", save_all=True, append_images=[photo.quantize(30)], duration=50)
    out["gray.gif"] = pillow(rgb.convert("L"), "GIF")
    # A frame that covers a part of its canvas: the canvas is made larger in the file, and the frame moved.
    for name, image, options in [("part.gif", flat, {}), ("part-clear.gif", clear, {"transparency": 5})]:
        part = bytearray(pillow(image.crop((0, 0, 20, 11)), "GIF", optimize=False, **options))
        at = part.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 20, 11))
        part[6:10] = struct.pack("<HH", 37, 29)
        part[at + 1 : at + 5] = struct.pack("<HH", 9, 6)
        out[name] = bytes(part)
    return out


def view(image, size):
    steps = [transforms.Resize(size, InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
    return np.asarray(transforms.Compose(steps)(image).convert("RGB"))


def write():
    for folder in ["decode", "view", "photo"]:
        shutil.rmtree(HERE / folder, ignore_errors=True)
        (HERE / folder).mkdir(parents=True)
    for name, contents in kinds().items():
        (HERE / "decode" / name).write_bytes(contents)
        image = Image.open(io.BytesIO(contents))
        print(f"{name:24} {image.mode:5}", len(contents))
        rgb = np.asarray(image.convert("RGB"))
        assert rgb.shape == (29, 37, 3), rgb.shape
        (HERE / "decode" / f"{name}.rgb").write_bytes(rgb.tobytes())
        if name == "turned.jpg":
            rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            (HERE / "view" / "turned.jpg.rgb").write_bytes(rgb.tobytes())
        if name.partition(".")[0] in VIEWED:
            # At its own size Pillow leaves an image as it is.
            for size in [16, 29, 48] if "low" in name else [16, 48]:
                rgb = view(Image.open(io.BytesIO(contents)), size)
                (HERE / "view" / f"{name}-{size}.rgb").write_bytes(rgb.tobytes())
    # Black and white, so that what overshoots is clamped between the passes.
    tall = (np.random.default_rng(3).random((90, 31, 3)) < 0.5) * np.uint8(255)
    (HERE / "view" / "tall.png").write_bytes(png(tall, 8, 2))
    (HERE / "view" / "tall.png-16.rgb").write_bytes(view(Image.fromarray(tall), 16).tobytes())
    photos = {
        "cat": data.chelsea()[30:270, 40:440],
        "tall": data.astronaut()[0:510, 150:330],
        "panorama": data.coffee()[150:260, 0:600],
        "small": data.rocket()[60:180, 280:370],
    }
    for name, pixels in photos.items():
        image = Image.fromarray(pixels)
        (HERE / "photo" / f"{name}.webp").write_bytes(pillow(image, "WEBP", lossless=True, method=6, quality=100))
        for size in [224, 336]:
            (HERE / "photo" / f"{name}-{size}.rgb").write_bytes(view(image, size)[::24].tobytes())
        if name != "tall":
            jpeg = pillow(image, "JPEG", quality=90, subsampling=2, progressive=name == "small")
            (HERE / "photo" / f"{name}.jpg").write_bytes(jpeg)
            rows = np.asarray(Image.open(io.BytesIO(jpeg)))[::16]
            (HERE / "photo" / f"{name}.jpg.rgb").write_bytes(rows.tobytes())


# One of every mode that Pillow resizes in its own way.
VIEWED = ["gray1", "gray4", "gray8", "gray16-dark", "gray16-key", "palette4", "palette8", "palette8-key", "gray-alpha8", "gray-alpha16",
          "gray-alpha-low", "rgb8", "rgb16", "rgba8", "rgba16", "rgba-low", "clear", "gray", "cmyk", "lossless-alpha"]

if __name__ == "__main__":
    write()
