"""Reference values of retrieval and alignment on real pictures, from CLIP_benchmark, open_clip and timm:

    cargo run -- data get emoji
    cargo run -- weights convert assets/clip-emoji --to timm --out TIMM
    python retrieval.py ../../data/emoji/train/noto-000000.tar TIMM

rewrites the folder `retrieval`. Made with clip-benchmark 1.6.2, open_clip_torch 3.3.0, timm 1.0.31, pyarrow 26.0.1.

    emoji.parquet    96 emoji of Noto (Apache License 2.0) in 7 x 7 blocks, so that the answers are not all right, of the
                     net's own 48 pixels, so that nothing is resampled; 1 to 7 captions each. `image` holds bytes and path
                     and `caption` is a list, as in Hugging Face's data sets
    expected.json    recall both ways by clip_benchmark.metrics.zeroshot_retrieval, of assets/clip-emoji: image tower by
                     timm, text tower by open_clip; and the cosines of every token between a student and its teacher,
                     whole and masked. The teacher is assets/clip-emoji; the student is the same net, with all weights of
                     its last two blocks halved, which is exact in every precision
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from clip_benchmark.metrics import zeroshot_retrieval
from PIL import Image
from safetensors.torch import load_file

from data import Rng

HERE = Path(__file__).parent
OUT = HERE / "retrieval"
MODEL = HERE.parent.parent / "assets/clip-emoji"
CONFIG = json.loads((MODEL / "config.json").read_text())
MASK, RATIO, SEED = 4, 0.5, 7


def pictures(shard):
    """Keys, PNGs and captions: every 16th concept that is in the shard."""
    files = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, extension = member.name.rsplit(".", 1)
            files.setdefault(key, {})[extension] = tar.extractfile(member).read()
    rows = []
    for i, key in enumerate(sorted(files)[::16][:96]):
        image = Image.open(io.BytesIO(files[key]["png"])).convert("RGB")
        image = image.resize((7, 7), Image.LANCZOS).resize((48, 48), Image.NEAREST)
        png = io.BytesIO()
        image.save(png, "PNG", optimize=True)
        captions = files[key]["txt"].decode().split("\n")
        captions = [line for line in captions if line.strip()]
        rows.append({"image": {"bytes": png.getvalue(), "path": f"{key}.png"}, "caption": captions[: 1 + i % 7]})
    return rows


def write(rows):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("caption", pa.list_(pa.string()))])
    # Several row groups and pages, and a codec that must be undone.
    pq.write_table(pa.Table.from_pylist(rows, schema), OUT / "emoji.parquet", row_group_size=40, data_page_size=4096,
                   compression="zstd", use_dictionary=False)


def tokenizer():
    """open_clip's, with the first merges of CLIP's vocabulary only."""
    vocab_size = CONFIG["text"]["vocab_size"]
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=CONFIG["text"]["context_length"])
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)[: vocab_size - 512 - 2]
    vocab = list(tokenizer.encoder)[:512] + ["".join(m) for m in merges] + ["<start_of_text>", "<end_of_text>"]
    tokenizer.encoder = dict(zip(vocab, range(vocab_size)))
    tokenizer.bpe_ranks = dict(zip(merges, range(len(merges))))
    tokenizer.sot_token_id, tokenizer.eot_token_id = vocab_size - 2, vocab_size - 1
    return tokenizer


class Clip(torch.nn.Module):
    def __init__(self, path):
        super().__init__()
        config = json.loads((path / "config.json").read_text())
        self.trunk = timm.create_model(config["architecture"], **config["model_args"])
        self.trunk.load_state_dict(load_file(path / "model.safetensors"))
        text = CONFIG["text"]
        self.text = open_clip.transformer.TextTransformer(
            context_length=text["context_length"], vocab_size=text["vocab_size"], width=text["width"],
            heads=text["heads"], layers=text["layers"], output_dim=text["out"])
        weights = {k: v.float() for k, v in load_file(MODEL / "model.safetensors").items()}
        self.text.load_state_dict({k.removeprefix("text."): v for k, v in weights.items() if k.startswith("text.")})
        self.encode_image, self.encode_text = self.trunk, self.text

    def tokens(self, pixels, kept=None):
        """[1, 1+K, D] of one image, every token through norm and head."""
        net = self.trunk
        x, rope = net._pos_embed(net.patch_embed(pixels))
        if kept is not None:
            x = torch.cat([x[:, :1], x[:, 1:][:, kept]], 1)
            rope = rope[kept]
        for block in net.blocks:
            x = block(x, rope=rope)
        return net.head(net.norm(x))


def kept(position, patches):
    """Random masking of one image: the first steps of a Fisher-Yates shuffle mask, the rest is kept."""
    rng, free = Rng(SEED, MASK, [position]), list(range(patches))
    masked = round(RATIO * patches)
    for i in range(masked):
        j = i + rng.below(patches - i)
        free[i], free[j] = free[j], free[i]
    return sorted(free[masked:])


def halved(teacher, path):
    student = Clip(path)
    for block in student.trunk.blocks[-2:]:
        for weight in block.parameters():
            weight.mul_(0.5)
    return student


def cosines(student, teacher, images, masked):
    rows = []
    for i, pixels in enumerate(images):
        keep = kept(i, teacher.trunk.patch_embed.num_patches) if masked else None
        a, b = student.tokens(pixels[None], keep), teacher.tokens(pixels[None])
        if masked:
            b = torch.cat([b[:, :1], b[:, 1:][:, keep]], 1)
        each = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)[0]
        row = {"cosine": each.mean(), "cosine_cls": each[0], "cosine_patches": each[1:].mean()}
        rows.append({name: round(value.item(), 7) for name, value in row.items()})
    return rows


@torch.no_grad()
def main(shard, path):
    torch.set_num_threads(1)
    rows = pictures(shard)
    write(rows)
    clip = Clip(path).eval()
    side = CONFIG["vision"]["image_size"]
    transform = open_clip.image_transform(side, is_train=False, mean=CONFIG["mean"], std=CONFIG["std"])
    images = torch.stack([transform(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows])
    captions = [row["caption"] for row in rows]
    batches = [(images[i : i + 32], captions[i : i + 32]) for i in range(0, len(rows), 32)]
    found = zeroshot_retrieval.evaluate(clip, batches, tokenizer(), "cpu", amp=False, recall_k_list=[1, 5, 10])
    ways = {"text_to_image": "image_retrieval", "image_to_text": "text_retrieval"}
    recall = {way: {f"r{k}": found[f"{name}_recall@{k}"] for k in [1, 5, 10]} for way, name in ways.items()}
    student = halved(clip, path).eval()
    align = {name: cosines(student, clip, images, masked) for name, masked in [("whole", False), ("masked", True)]}
    counts = {"images": len(rows), "captions": sum(map(len, captions))}
    (OUT / "expected.json").write_text(json.dumps(counts | recall | {"align": align}, indent=0) + "\n")
    print(counts, recall)
    for name, values in align.items():
        print(name, {key: sum(v[key] for v in values) / len(values) for key in values[0]})


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    main(sys.argv[1], Path(sys.argv[2]))
