"""The peer of `uta embed`: open_clip's image embeddings of a folder, with its own transform and a DataLoader.

    python embed.py make ViT-B-16 DIR              # a hub folder with random weights, for both
    python embed.py run DIR IMAGES [bf16]          # images a second, loading of the model left out
    uta embed --model DIR --images IMAGES --batch 32 --out out.safetensors     # whole process

Two threads and two decoding workers on both sides. `run` prints one JSON object.
"""

import json
import sys
import time
from pathlib import Path

import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file, save_file


class Folder(torch.utils.data.Dataset):
    def __init__(self, root, transform):
        suffixes = {".jpg", ".jpeg", ".png"}
        self.paths = sorted(p for p in Path(root).rglob("*") if p.suffix.lower() in suffixes)
        self.transform = transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(Image.open(self.paths[i]))


def make(name, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": open_clip.get_model_preprocess_cfg(model)}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def run(folder, images, precision):
    torch.set_num_threads(2)
    config = json.loads((Path(folder) / "open_clip_config.json").read_text())["model_cfg"]
    name = next(n for n in open_clip.list_models() if open_clip.get_model_config(n) == config)
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.load_state_dict(load_file(Path(folder) / "open_clip_model.safetensors"), strict=True)
    model.eval()
    loader = torch.utils.data.DataLoader(Folder(images, transform), batch_size=32, num_workers=2)
    bf16 = precision == "bf16"
    began, parts = time.perf_counter(), []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for batch in loader:
            parts.append(model.encode_image(batch).float())
    seconds = time.perf_counter() - began
    out = torch.cat(parts)
    save_file({"embeddings": out}, "open_clip.safetensors")
    print(json.dumps({"images_per_second": len(out) / seconds, "seconds": seconds, "precision": precision}))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(*sys.argv[2:4])
    else:
        run(sys.argv[2], sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else "f32")
