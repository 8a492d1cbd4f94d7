"""Labels that open_clip's modules give emoji by CLIP_benchmark's protocol, with the demo's teacher:

    python zeroshot.py SET PREDICTIONS   # compares with what `uta eval zeroshot --model assets/clip-emoji --data SET
                                         # --predictions PREDICTIONS` wrote
    python zeroshot.py SHARD --small     # rewrites the folder `zeroshot` from every eighth picture

SET is a shard that `uta data get emoji` made, or a folder of ImageNet's 1000 class folders.

Made with torch 2.13.0, open_clip_torch 3.3.0, timm 1.0.31, clip-benchmark 1.6.2, Pillow 13.0.0. The image encoder is timm's
Eva of the sizes in assets/clip-emoji/config.json, the text encoder open_clip's TextTransformer; pictures pass through
open_clip's own transform; classifier and scores are CLIP_benchmark's functions.

    zeroshot/twemoji-small.tar  pictures (PNG, WebP, JPEG; 30 to 60 pixels) and classes
    zeroshot/classnames.txt, templates.txt
    zeroshot/expected.json      acc1, acc5, mean_per_class_recall, and a row a picture: key, label, the five best classes, scores
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import open_clip
import torch
from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier
from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from open_clip.model import CustomTextCLIP
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score
from timm.models import register_model
from timm.models.eva import Eva

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "zeroshot"
CONFIG = json.loads((ROOT / "assets/clip-emoji/config.json").read_text())
VISION, TEXT = CONFIG["vision"], CONFIG["text"]


@register_model
def clip_emoji(pretrained=False, **kwargs):
    kwargs = {k: v for k, v in kwargs.items() if k in ("num_classes", "global_pool")}
    net = Eva(img_size=VISION["image_size"], patch_size=VISION["patch_size"], embed_dim=VISION["width"],
              depth=VISION["depth"], num_heads=VISION["heads"], mlp_ratio=VISION["hidden"] / VISION["width"] + 1e-4,
              qkv_fused=False, swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=True,
              ref_feat_shape=(16, 16), **kwargs)
    net.pretrained_cfg = net.default_cfg = {}
    return net


def model():
    """open_clip's CLIP with the teacher's weights, strictly."""
    vision = dict(image_size=VISION["image_size"], timm_model_name="clip_emoji", timm_model_pretrained=False,
                  timm_pool="token", timm_proj=None)
    text = {k: TEXT[k] for k in ("context_length", "vocab_size", "width", "heads", "layers")}
    net = CustomTextCLIP(CONFIG["embed_dim"], vision, text)
    state = {}
    for name, weight in load_file(ROOT / "assets/clip-emoji/model.safetensors").items():
        if name.startswith("visual."):
            for ours, timms in NAMES:
                name = name.replace(ours, timms)
            name = name.replace("visual.", "visual.trunk.", 1)
        state[name] = weight.float()
    own = net.state_dict()
    for name in own.keys() - state.keys():
        assert "rope" in name or name.endswith("attn_mask"), name
        state[name] = own[name]
    net.load_state_dict(state, strict=True)
    return net.eval()


# EVA's names and timm's.
NAMES = [("q_bias", "q_proj.bias"), ("v_bias", "v_proj.bias"), ("mlp.w1.", "mlp.fc1_g."), ("mlp.w2.", "mlp.fc1_x."),
         ("mlp.w3.", "mlp.fc2."), ("mlp.ffn_ln", "mlp.norm")]


def tokenizer():
    """open_clip's, with the first merges only."""
    full, vocab = open_clip.SimpleTokenizer(context_length=TEXT["context_length"]), TEXT["vocab_size"]
    kept = sorted(full.encoder, key=full.encoder.get)[: vocab - 2] + ["<start_of_text>", "<end_of_text>"]
    full.encoder = {token: i for i, token in enumerate(kept)}
    full.decoder = {i: token for token, i in full.encoder.items()}
    full.bpe_ranks = {pair: rank for pair, rank in full.bpe_ranks.items() if rank < vocab - 2 - 512}
    full.vocab_size = vocab
    full.sot_token_id, full.eot_token_id = vocab - 2, vocab - 1
    full.all_special_ids = [vocab - 2, vocab - 1]
    return full


def samples(shard):
    """(key, extension, bytes, class) of the pictures that have a class, in a shard or in sorted class folders."""
    if shard.is_dir():
        for label, folder in enumerate(sorted(shard.iterdir())):
            for path in sorted(folder.iterdir()):
                yield str(path.relative_to(shard)), path.suffix[1:], path.read_bytes(), label
        return
    found = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            if member.isfile():
                key, extension = member.name.split(".", 1)
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()
    for key, parts in found.items():
        extension = next(e for e in parts if e in ("png", "webp", "jpg"))
        if "cls" in parts:
            yield key, extension, parts[extension], int(parts["cls"])


class Pictures(torch.utils.data.Dataset):
    def __init__(self, samples):
        mean, std = CONFIG["mean"], CONFIG["std"]
        self.samples = list(samples)
        self.transform = image_transform(VISION["image_size"], is_train=False, mean=mean, std=std)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        _, _, image, label = self.samples[i]
        return self.transform(Image.open(io.BytesIO(image))), label


def evaluate(shard, words):
    if shard.is_dir():
        names, templates = IMAGENET_CLASSNAMES, [t("{c}") for t in OPENAI_IMAGENET_TEMPLATES]
    else:
        names = (words / "classnames.txt").read_text().splitlines()
        templates = [t.replace("{}", "{c}") for t in (words / "templates.txt").read_text().splitlines()]
    pictures, net = Pictures(samples(shard)), model()
    with torch.no_grad():
        classifier = zero_shot_classifier(net, tokenizer(), names, templates, "cpu", amp=False)
        loader = torch.utils.data.DataLoader(pictures, batch_size=64)
        logits, target = run_classification(net, classifier, loader, "cpu", amp=False)
    # CLIP_benchmark's `accuracy` means this, and fails with numpy 2.4.
    acc1, acc5 = ((logits.topk(k).indices == target[:, None]).any(dim=1).float().mean().item() for k in (1, 5))
    recall = balanced_accuracy_score(target, logits.argmax(dim=1))
    scores, best = (logits / 100).topk(5)
    rows = [
        dict(file=key, label=label, top5=five.tolist(), scores=[round(s, 5) for s in score.tolist()])
        for (key, _, _, label), five, score in zip(pictures.samples, best, scores)
    ]
    return dict(acc1=acc1, acc5=acc5, mean_per_class_recall=float(recall), names=names, predictions=rows)


def small(shard):
    """Every eighth picture at sizes and in formats by turns."""
    HERE.mkdir(exist_ok=True)
    with tarfile.open(HERE / "twemoji-small.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, (key, _, image, label) in enumerate(list(samples(shard))[::8]):
            image = Image.open(io.BytesIO(image))
            image = image.resize((30 + i % 7 * 5, 30 + i % 5 * 7), Image.Resampling.LANCZOS)
            kind = ["png", "webp", "jpg"][i % 3]
            out = io.BytesIO()
            if kind == "png":
                image.convert("RGB").quantize(32).save(out, "PNG", optimize=True)
            elif kind == "webp":
                image.convert("RGB").save(out, "WEBP", quality=80)
            else:
                image.convert("RGB").save(out, "JPEG", quality=80)
            for extension, data in [(kind, out.getvalue()), ("cls", str(label).encode())]:
                info = tarfile.TarInfo(f"{key.replace('/', '-')}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for name in ("classnames.txt", "templates.txt"):
        (HERE / name).write_text((shard.parent.parent / name).read_text())
    found = evaluate(HERE / "twemoji-small.tar", HERE)
    del found["names"]
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in found.pop("predictions"))
    (HERE / "expected.json").write_text(json.dumps(found)[:-1] + ', "predictions": [\n' + rows + "\n]}\n")
    print(found)


if __name__ == "__main__":
    shard = Path(sys.argv[1])
    if sys.argv[2:] == ["--small"]:
        small(shard)
    else:
        found = evaluate(shard, shard.parent.parent)
        theirs = found.pop("predictions")
        if len(sys.argv) > 2:
            ours = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
            assert [o["file"] for o in ours] == [t["file"] for t in theirs]
            names = found["names"]
            # Two classes of one name tie exactly, and either may come first.
            equal = [names[o["top5"][0]] == names[t["top5"][0]] for o, t in zip(ours, theirs)]
            right = sum(o["top5"][0] == o["label"] for o in ours) / len(ours)
            apart = max(abs(a - b) for o, t in zip(ours, theirs) for a, b in zip(o["scores"], t["scores"]))
            found |= dict(n=len(ours), equal_labels=sum(equal) / len(equal), our_acc1=right, scores_apart=apart)
        del found["names"]
        print(json.dumps(found))
