"""JPEGs of every layout against Pillow: samplings, scans, restart intervals, sizes, colours, progressive ones, and cuts with an
end mark behind. Needs Pillow 13.0.0 and numpy.

    cargo build -p uta-data --example pixels
    python tests/golden/jpeg_sweep.py target/debug/examples/pixels     # compares, prints the figures
    python tests/golden/jpeg_sweep.py --write                          # rewrites tests/golden/pixels/jpeg

pixels/jpeg/NAME.jpg is a file of a layout that few programs write, and NAME.jpg.rgb Pillow's pixels of it.
"""

import io
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent / "pixels" / "jpeg"
STANDARD = (Path(__file__).parents[2] / "crates/uta-data/assets/standard.dht").read_bytes()
ORDER = sorted(range(64), key=lambda i: (s := i // 8 + i % 8, i // 8 if s % 2 else i % 8))
COSINES = np.array(
    [[(0.125**0.5 if u == 0 else 0.5) * np.cos((2 * x + 1) * u * np.pi / 16) for x in range(8)] for u in range(8)]
)
SAMPLINGS = {
    "444": [(1, 1)] * 3,
    "422": [(2, 1), (1, 1), (1, 1)],
    "420": [(2, 2), (1, 1), (1, 1)],
    "440": [(1, 2), (1, 1), (1, 1)],
    "411": [(4, 1), (1, 1), (1, 1)],
    "410": [(4, 2), (1, 1), (1, 1)],
    "441": [(1, 4), (1, 1), (1, 1)],
    "444-2": [(2, 1)] * 3,
    "422-2": [(2, 2), (1, 2), (1, 2)],
    "440-2": [(2, 2), (2, 1), (2, 1)],
    "mixed": [(2, 2), (2, 1), (1, 1)],
    "luma-half": [(1, 1), (2, 2), (2, 2)],
    "luma-half-across": [(1, 1), (2, 1), (2, 1)],
    "thirds": [(3, 1), (1, 1), (1, 1)],
    "fraction": [(3, 1), (2, 1), (2, 1)],
}
SCANS = {"one": [[0, 1, 2]], "each": [[0], [1], [2]], "chroma": [[0], [1, 2]], "luma-last": [[1], [0, 2]]}
SIZES = [(1, 1), (2, 8), (3, 5), (4, 17), (5, 9), (17, 33), (40, 29)]


def tables():
    """The codes of the standard's luminance tables: DC, AC."""
    out, at = {}, 0
    while at < len(STANDARD):
        head, counts = STANDARD[at], STANDARD[at + 1 : at + 17]
        code, at, codes = 0, at + 17, {}
        for bits, count in enumerate(counts, 1):
            for _ in range(count):
                codes[STANDARD[at]] = (code, bits)
                code, at = code + 1, at + 1
            code <<= 1
        out[head] = codes
    return out[0], out[16]


DC, AC = tables()


def segment(code, body):
    return bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body


class Writer:
    def __init__(self):
        self.bits = []

    def put(self, value, count):
        self.bits += [(value >> (count - 1 - i)) & 1 for i in range(count)]

    def number(self, value, size):
        self.put(value if value >= 0 else value + (1 << size) - 1, size)

    def block(self, values, before):
        difference = int(values[0]) - before
        size = abs(difference).bit_length()
        self.put(*DC[size])
        self.number(difference, size)
        run, last = 0, max(np.flatnonzero(values[1:]) + 1, default=0)
        for value in map(int, values[1 : last + 1]):
            if value == 0:
                run += 1
                continue
            while run > 15:
                self.put(*AC[0xF0])
                run -= 16
            size = abs(value).bit_length()
            self.put(*AC[run << 4 | size])
            self.number(value, size)
            run = 0
        if last < 63:
            self.put(*AC[0])
        return int(values[0])

    def take(self):
        self.bits += [1] * (-len(self.bits) % 8)
        out = np.packbits(self.bits).tobytes() if self.bits else b""
        self.bits = []
        return out.replace(b"\xff", b"\xff\0")


def encode(rgb, sampling, scans, restart=0, step=5, head=segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"), ids=(1, 2, 3, 4), dht=True):
    """[height, width, channels] of components as they are stored, but for three with a JFIF header: those become YCbCr."""
    height, width, count = rgb.shape
    planes = [rgb[..., i].astype(float) for i in range(count)]
    if count == 3 and b"JFIF" in head:
        r, g, b = planes
        y = 0.299 * r + 0.587 * g + 0.114 * b
        planes = [y, (b - y) / 1.772 + 128, (r - y) / 1.402 + 128]
    most_h, most_v = (max(s[i] for s in sampling) for i in (0, 1))
    across, down = -(-width // (8 * most_h)), -(-height // (8 * most_v))
    parts = []
    for plane, (h, v) in zip(planes, sampling):
        full = np.pad(plane, ((0, down * 8 * most_v - height), (0, across * 8 * most_h - width)), "edge")
        rows = np.arange(down * 8 * v) * most_v // v
        columns = np.arange(across * 8 * h) * most_h // h
        blocks = (full[rows][:, columns] - 128).reshape(down * v, 8, across * h, 8).transpose(0, 2, 1, 3)
        values = np.round(COSINES @ blocks @ COSINES.T / step).astype(int)
        parts.append(values.reshape(down * v, across * h, 64)[..., ORDER])
    out = b"\xff\xd8" + head + segment(0xDB, b"\0" + bytes([step] * 64))
    frame = b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in zip(ids, sampling))
    out += segment(0xC0, struct.pack(">BHHB", 8, height, width, count) + frame)
    out += segment(0xC4, STANDARD) if dht else b""
    out += segment(0xDD, struct.pack(">H", restart)) if restart else b""
    for scan in scans:
        out += segment(0xDA, bytes([len(scan)]) + b"".join(bytes([ids[i], 0]) for i in scan) + b"\0\x3f\0")
        if len(scan) == 1:
            (h, v), i = sampling[scan[0]], scan[0]
            columns, rows = -(-(-(-width * h // most_h)) // 8), -(-(-(-height * v // most_v)) // 8)
            units = [[(i, y, x)] for y in range(rows) for x in range(columns)]
        else:
            units = [
                [(i, my * sampling[i][1] + y, mx * sampling[i][0] + x) for i in scan for y in range(sampling[i][1]) for x in range(sampling[i][0])]
                for my in range(down)
                for mx in range(across)
            ]
        writer, before = Writer(), [0] * count
        for number, unit in enumerate(units):
            if restart and number and number % restart == 0:
                out += writer.take() + bytes([0xFF, 0xD0 + (number // restart - 1) % 8])
                before = [0] * count
            for i, y, x in unit:
                before[i] = writer.block(parts[i][y, x], before[i])
        out += writer.take()
    return out + b"\xff\xd9"


def picture(width, height, channels=3, seed=0):
    y, x = np.mgrid[0:height, 0:width]
    waves = [120 * np.sin(x / (2 + i) + seed) * np.cos(y / (3 + i)) for i in range(channels)]
    noise = np.random.default_rng(seed + 40 * width + height).integers(-20, 21, (height, width, channels))
    return np.clip(127 + np.stack(waves, 2) + noise, 0, 255).astype(np.uint8)


def pillow(pixels, mode="RGB", **options):
    out = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode)
    image.save(out, "JPEG", **options)
    return out.getvalue()


ADOBE = segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")


def whole():
    """Name and bytes of files that are whole."""
    for sampling, factors in SAMPLINGS.items():
        for layout, scans in SCANS.items():
            for restart in [0, 1, 3]:
                for width, height in SIZES:
                    name = f"{sampling}_{layout}_{restart}_{width}x{height}"
                    yield name, encode(picture(width, height), factors, scans, restart)
    for width, height in SIZES:
        size = f"{width}x{height}"
        for h, v in [(1, 1), (2, 1), (2, 2), (4, 4)]:
            yield f"gray-{h}{v}_{size}", encode(picture(width, height, 1), [(h, v)], [[0]], 2)
        yield f"rgb_{size}", encode(picture(width, height), [(1, 1)] * 3, SCANS["each"], head=b"", ids=b"RGB\0")
        yield f"rgb-420_{size}", encode(picture(width, height), SAMPLINGS["420"], SCANS["one"], head=ADOBE)
        yield f"bare_{size}", encode(picture(width, height), SAMPLINGS["420"], SCANS["each"], head=b"")
        yield f"film_{size}", encode(picture(width, height), SAMPLINGS["420"], SCANS["one"], dht=False)
        for name, head in [("cmyk", b""), ("cmyk-adobe", ADOBE), ("ycck", ADOBE[:-1] + b"\2")]:
            for factors in [[(1, 1)] * 4, [(2, 2), (1, 1), (1, 1), (2, 2)]]:
                for scans in [[[0, 1, 2, 3]], [[0], [1], [2], [3]]]:
                    body = encode(picture(width, height, 4), factors, scans, head=head)
                    yield f"{name}-{factors[0][0]}-{len(scans)}_{size}", body
        for subsampling in [0, 1, 2]:
            for restart in [0, 1, 4]:
                for quality in [50, 95]:
                    options = dict(progressive=True, subsampling=subsampling, quality=quality)
                    options |= dict(restart_marker_blocks=restart) if restart else {}
                    name = f"progressive-{subsampling}-{restart}-{quality}_{size}"
                    yield name, pillow(picture(width, height), **options)
        yield f"progressive-gray_{size}", pillow(picture(width, height, 1), "L", progressive=True)
        yield f"progressive-cmyk_{size}", pillow(picture(width, height, 4), "CMYK", progressive=True)
        yield f"progressive-rgb_{size}", pillow(picture(width, height), progressive=True, keep_rgb=True)
    for subsampling in [0, 1, 2]:
        yield f"progressive-large-{subsampling}", pillow(picture(301, 203), progressive=True, subsampling=subsampling)


def marks(jpeg):
    """Where the header of each scan begins, and its coded data begins and ends."""
    at, out = 2, []
    while jpeg[at + 1] != 0xD9:
        end = at + 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
        if jpeg[at + 1] == 0xDA:
            begin = end
            while not (jpeg[end] == 0xFF and jpeg[end + 1] not in [0, *range(0xD0, 0xD8)]):
                end += 1
            out.append((at, begin, end))
        at = end
    return out


def cut(name, jpeg):
    """The file with whole scans only or a part of one, then an end mark; with a part of one, then the others; without its end."""
    scans = marks(jpeg)
    for number, (head, begin, end) in enumerate(scans[:4] + scans[4:][-1:]):
        yield f"before-{number}_{name}", jpeg[:head] + b"\xff\xd9"
        for share in [0, 30, 60, 90]:
            at = begin + (end - begin) * share // 100
            # A part of a marker would be another kind of damage.
            at -= jpeg[at - 1] == 0xFF
            yield f"cut-{number}-{share}_{name}", jpeg[:at] + b"\xff\xd9"
            yield f"gap-{number}-{share}_{name}", jpeg[:at] + jpeg[end:]
    yield f"no-end_{name}", jpeg[:-2]


def cuts():
    for name, jpeg in whole():
        if name.endswith("_40x29") and "_1_" not in name:
            yield from cut(name, jpeg)


def theirs(jpeg):
    try:
        return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    except Exception:
        return None


def ours(program, files, folder):
    paths = [folder / f"{i:05}.jpg" for i in range(len(files))]
    for path, (_, jpeg) in zip(paths, files):
        path.write_bytes(jpeg)
    out = folder / "out"
    subprocess.run([program, out, *paths], check=True)
    data = io.BytesIO(out.read_bytes())
    for _ in files:
        line = data.readline().decode().strip()
        if line.startswith("error: "):
            yield line
        else:
            width, height = map(int, line.split())
            yield np.frombuffer(data.read(3 * width * height), np.uint8).reshape(height, width, 3)


def compare(program):
    for title, files in [("whole", list(whole())), ("cut", list(cuts()))]:
        counts, worst, reasons = Counter(), 0, Counter()
        with tempfile.TemporaryDirectory() as folder:
            for (name, jpeg), our in zip(files, ours(program, files, Path(folder))):
                their = theirs(jpeg)
                if isinstance(our, str):
                    counts["refused by both" if their is None else "refused by us alone"] += 1
                    reasons["".join(c for c in our if not c.isdigit())] += 1
                    if title == "whole" and their is not None:
                        print(name, our)
                elif their is None:
                    counts["refused by Pillow alone"] += 1
                    print(name, "refused by Pillow alone")
                else:
                    difference = np.abs(our.astype(int) - their).max() if our.shape == their.shape else 256
                    worst = max(worst, difference)
                    counts["equal" if difference == 0 else "different"] += 1
                    if difference:
                        print(name, "different:", difference)
        print(f"{title}: {len(files)} files; largest difference {worst}; {dict(counts)}")
        for reason, count in reasons.most_common():
            print(f"  {count:5} {reason}")


def write():
    HERE.mkdir(parents=True, exist_ok=True)
    names = [f"{s}_{l}_{r}" for s in SAMPLINGS for l, r in [("one", 0), ("each", 0), ("chroma", 3)] if s != "fraction"]
    names = [f"{name}_17x33" for name in names] + [f"420_one_0_{w}x{h}" for w, h in SIZES[:4]]
    names += [f"422_each_0_{w}x{h}" for w, h in SIZES[:4]] + ["gray-21_17x33", "rgb_17x33", "rgb-420_17x33", "film_17x33"]
    names += ["cmyk-1-4_17x33", "ycck-2-1_17x33", "cmyk-adobe-2-4_17x33", "progressive-2-4-95_17x33"]
    names += ["progressive-0-0-50_17x33", "progressive-1-0-95_17x33", "progressive-cmyk_17x33", "progressive-gray_3x5"]
    files = dict(whole())
    for name in names:
        (HERE / f"{name}.jpg").write_bytes(files[name])
        (HERE / f"{name}.jpg.rgb").write_bytes(theirs(files[name]).tobytes())


if __name__ == "__main__":
    write() if sys.argv[1] == "--write" else compare(sys.argv[1])
