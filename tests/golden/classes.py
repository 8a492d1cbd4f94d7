"""Class names and templates of the sets of Table 1: `python classes.py META.MAT OBJECTNET` rewrites crates/uta-eval/data.
Sources: open_clip_torch 3.3.0 (names, templates), timm 1.0.31 (synsets of ImageNet, A and R), META.MAT of
ILSVRC2012_devkit_t12 (the devkit's numbers), OBJECTNET, the folder src/datasets/objectnet_metadata of mlfoundations/wise-ft.
CLIP_benchmark 1.6.2 is only compared with.

    imagenet.tsv            wnid, the devkit's number (1 to 1000), name: a class a line, in the order of the wnids
    imagenet-templates.txt  the 80 templates
    imagenet-a.txt, -r.txt  wnids of the sets' 200 classes
    objectnet.tsv           folder, name: the 113 classes that ImageNet has too, in the order of the folders
"""

import json
import sys
from pathlib import Path

import clip_benchmark
import scipy.io
import timm
from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

OUT = Path(__file__).parents[2] / "crates/uta-eval/data"
INFO = Path(timm.__file__).parent / "data/_info"
BENCHMARK = Path(clip_benchmark.__file__).parent / "datasets"


def lines(name):
    return (INFO / name).read_text().split()


def write(name, rows):
    (OUT / name).write_text("".join(row + "\n" for row in rows))


meta, objectnet = sys.argv[1], Path(sys.argv[2])
OUT.mkdir(exist_ok=True)
wnids = lines("imagenet_synsets.txt")
assert len(wnids) == 1000 and wnids == sorted(wnids)
synsets = scipy.io.loadmat(meta, squeeze_me=True)["synsets"]
number = {str(s["WNID"]): int(s["ILSVRC2012_ID"]) for s in synsets}
assert sorted(number[w] for w in wnids) == list(range(1, 1001))
# The first validation picture is a sea snake: 490 in the devkit, 65 among sorted wnids.
assert number[wnids[65]] == 490
write("imagenet.tsv", (f"{w}\t{number[w]}\t{name}" for w, name in zip(wnids, IMAGENET_CLASSNAMES, strict=True)))

templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
assert len(templates) == 80
write("imagenet-templates.txt", templates)

for name in ["a", "r"]:
    subset = lines(f"imagenet_{name}_synsets.txt")
    assert len(subset) == 200 and subset == sorted(subset) and set(subset) <= set(wnids)
    write(f"imagenet-{name}.txt", subset)

label = json.loads((objectnet / "folder_to_objectnet_label.json").read_text())
overlap = json.loads((objectnet / "objectnet_to_imagenet_1k.json").read_text())
folders = sorted(folder for folder, name in label.items() if name in overlap)
assert len(folders) == 113 == len(overlap)
write("objectnet.tsv", (f"{folder}\t{label[folder].lower()}" for folder in folders))

# CLIP_benchmark's own copies agree.
assert json.loads((BENCHMARK / "en_classnames.json").read_text())["imagenet1k"] == list(IMAGENET_CLASSNAMES)
other = json.loads((BENCHMARK / "en_zeroshot_classification_templates.json").read_text())["imagenet1k"]
assert [t.format(c="{}") for t in other] == templates
