"""The peers of `uta bench data`: JPEG shards to normalised training batches, images a second and core.

    python data.py make DIR          # 1,000 JPEGs of 500 x 375 from photographs of scikit-image and scikit-learn, in shards
    python data.py run DIR [PEER...] [--seconds N]
    uta bench data DIR --workers 1 --json

Each peer decodes, takes torchvision's RandomResizedCrop (scale 0.2 to 1) to 224, flips, and normalises to float32
[3, 224, 224], in one process and one thread:

    webdataset     webdataset, Pillow, torchvision on Pillow images: open_clip's pipeline
    torchvision    torchvision.io.decode_jpeg, v2 transforms on uint8 tensors (antialiased bicubic)
    simplejpeg     simplejpeg's whole decode, OpenCV's bicubic of the crop (not antialiased, so less work and coarser)
    simplejpeg-pil simplejpeg's whole decode, Pillow's bicubic of the crop (the pixels that all but OpenCV give)
    decoder        simplejpeg's whole decode alone: the limit of a pipeline that decodes whole images
    pillow         Pillow's whole decode alone

PyPI: webdataset, simplejpeg, opencv-python-headless. Prints one JSON object a peer.
"""

import io
import json
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZE, SCALE, RATIO = 224, (0.2, 1.0), (3 / 4, 4 / 3)


def make(folder, count=1000, shard=250):
    import skimage.data
    import sklearn.datasets

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    at = Path(skimage.data.__file__).parent
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "motorcycle_left.png"]
    photos = [Image.open(at / name).convert("RGB") for name in names if (at / name).exists()]
    photos += [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
    rng = np.random.default_rng(0)
    for first in range(0, count, shard):
        with tarfile.open(folder / f"photos-{first // shard:06}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(first, min(first + shard, count)):
                photo = photos[i % len(photos)]
                w = rng.uniform(0.6, 1.0) * min(photo.width, photo.height * 4 / 3)
                h = w * 3 / 4
                x, y = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
                view = photo.resize((500, 375), Image.BICUBIC, (x, y, x + w, y + h))
                if rng.random() < 0.5:
                    view = view.transpose(Image.FLIP_LEFT_RIGHT)
                jpeg = io.BytesIO()
                view.save(jpeg, "JPEG", quality=int(rng.integers(85, 97)))
                for name, data in [(f"{i:06}.jpg", jpeg.getvalue()), (f"{i:06}.txt", b"a photograph")]:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def shards(folder):
    return sorted(str(path) for path in Path(folder).glob("*.tar"))


def jpegs(folder):
    for path in shards(folder):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    yield tar.extractfile(member).read()


def pil_transform():
    return transforms.Compose([
        transforms.RandomResizedCrop(SIZE, SCALE, RATIO, InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])


def webdataset(folder):
    import webdataset as wds

    set_ = wds.WebDataset(shards(folder), shardshuffle=False).decode("pilrgb").to_tuple("jpg", "txt")
    return (image for image, _ in set_.map_tuple(pil_transform(), lambda text: text))


def torchvision(folder):
    from torchvision.io import ImageReadMode, decode_jpeg

    transform = v2.Compose([
        v2.RandomResizedCrop(SIZE, SCALE, RATIO, InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ])
    for jpeg in jpegs(folder):
        data = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
        yield transform(decode_jpeg(data, mode=ImageReadMode.RGB))


def simplejpeg_with(resize):
    def run(folder):
        import simplejpeg

        scale = (1 / (255 * np.array(STD))).astype(np.float32)
        shift = (-np.array(MEAN) / np.array(STD)).astype(np.float32)
        for jpeg in jpegs(folder):
            image = simplejpeg.decode_jpeg(jpeg)
            box = torch.empty(0, *image.shape[:2])
            top, left, h, w = transforms.RandomResizedCrop.get_params(box, SCALE, RATIO)
            view = resize(image[top : top + h, left : left + w])
            if torch.rand(1) < 0.5:
                view = view[:, ::-1]
            yield torch.from_numpy(np.ascontiguousarray((view * scale + shift).transpose(2, 0, 1)))

    return run


def opencv_resize(crop):
    import cv2

    cv2.setNumThreads(1)
    return cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def pillow_resize(crop):
    return np.asarray(Image.fromarray(crop).resize((SIZE, SIZE), Image.BICUBIC))


def decoder(folder):
    import simplejpeg

    return (simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs(folder))


def pillow(folder):
    return (Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs(folder))


PEERS = {
    "webdataset": webdataset,
    "torchvision": torchvision,
    "simplejpeg": simplejpeg_with(opencv_resize),
    "simplejpeg-pil": simplejpeg_with(pillow_resize),
    "decoder": decoder,
    "pillow": pillow,
}


def run(folder, peers, seconds):
    torch.set_num_threads(1)
    for name in peers or PEERS:
        for _, _ in zip(range(50), PEERS[name](folder)):
            pass
        images, began, cpu = 0, time.perf_counter(), time.process_time()
        while (spent := time.perf_counter() - began) < seconds:
            images += sum(1 for _ in PEERS[name](folder))
        cpu = time.process_time() - cpu
        speeds = {"images_per_second": images / spent, "images_per_cpu_second": images / cpu}
        print(json.dumps({"peer": name, **speeds, "images": images}), flush=True)


if __name__ == "__main__":
    args, seconds = sys.argv[1:], 10.0
    if "--seconds" in args:
        at = args.index("--seconds")
        seconds = float(args[at + 1])
        del args[at : at + 2]
    if args[0] == "make":
        make(args[1])
    else:
        run(args[1], args[2:], seconds)
