"""Makes all reference values again, in a fresh folder, and says which differ from those kept here:

    python tests/golden/make_all.py OUT                 # every script that needs no more than requirements.txt
    python tests/golden/make_all.py OUT model optim     # these only
    python tests/golden/make_all.py OUT --uta target/release/uta --emoji data/emoji      # retrieval, zeroshot too
    python tests/golden/make_all.py OUT --eva DIR --uta-code DIR --clip DIR --mae DIR --unilm DIR      # official, mim too
    python tests/golden/make_all.py OUT --devkit META.MAT --objectnet DIR                # classes too

OUT gets a copy of the scripts and of what they read, laid out as in the repository, and each script runs there: nothing of the
repository is written to. A script that lacks something is named with what it lacks. README.md beside this file says what each
needs. The exit status is 0 where all that ran gave what is kept, to rounding, and 1 where anything differs or fails.
"""

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
GOLDEN = Path("tests/golden")
# What scripts read besides what others of them wrote.
READ = ["assets/clip-emoji", "crates/uta-data/assets"]

# In this order, since some read what others wrote: script, its words, what it writes below tests/golden (else from the
# repository's root), and the options that it needs.
STEPS = [
    ("data", [], ["data"], []),
    ("augment", [], ["augment"], []),
    ("pixels", [], ["pixels/decode", "pixels/view", "pixels/photo"], []),
    ("pixels_modes", [], ["pixels/modes"], []),
    ("jpeg_sweep", ["--write"], ["pixels/jpeg"], []),
    ("model", [], ["text.safetensors", "vit_eva01.safetensors", "vit_eva02.safetensors"], []),
    ("resize", [], ["resize.safetensors"], []),
    ("optim", [], ["optim.safetensors"], []),
    ("torch_files", [], ["torch_files"], []),
    ("families", [], ["families/[!o]*", "families/open_clip*"], []),
    ("open_clip_models", [], ["open_clip_models.json"], []),
    ("checksums", [], ["retrieval/checksums.parquet"], []),
    ("mojibake", [], ["/crates/uta-data/assets/mojibake.tsv"], []),
    ("img2dataset_set", [], ["img2dataset"], []),
    ("official", ["{eva}", "{uta_code}", "{clip}", "{mae}", "{unilm}"], ["families/official_*"],
     ["eva", "uta_code", "clip", "mae", "unilm"]),
    ("mim", ["{eva}"], ["mim.safetensors"], ["eva"]),
    ("retrieval", ["{emoji}/train/noto-000000.tar", "{timm}"],
     ["retrieval/emoji.parquet", "retrieval/expected.json"], ["emoji", "uta"]),
    ("zeroshot", ["{emoji}/held-out/twemoji-000000.tar", "--small"], ["zeroshot"], ["emoji"]),
    ("classes", ["{devkit}", "{objectnet}"], ["/crates/uta-eval/data"], ["devkit", "objectnet"]),
]


def outputs(root, patterns):
    """The files that a step writes, from `root`."""
    found = set()
    for pattern in patterns:
        pattern = pattern[1:] if pattern.startswith("/") else f"{GOLDEN}/{pattern}"
        for path in root.glob(pattern):
            files = path.rglob("*") if path.is_dir() else [path]
            # Hidden ones are indexes that uta keeps beside shards.
            found |= {file.relative_to(root) for file in files if file.is_file() and file.name[0] != "."}
    return found


# Sums of floats depend on processor and threads: values this near, as a share of the tensor's largest, are the same.
ROUNDING = 1e-6
# A last digit of the scores that are written in JSON.
WRITTEN = 1.01e-5


def tensors_apart(ours, kept):
    """How far two safetensors files are apart, in words, and whether that is rounding."""
    ours, kept = load_file(ours), load_file(kept)
    if {k: (v.shape, v.dtype) for k, v in ours.items()} != {k: (v.shape, v.dtype) for k, v in kept.items()}:
        return "other names, shapes or types", False
    worst, where = 0.0, "none"
    for name, value in kept.items():
        if not value.size:
            continue
        a, b = (x.astype(np.float64) for x in (ours[name], value))
        off = np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)
        if not off <= worst:
            worst, where = off, name
    return f"by {worst:.1e} of the largest value of {where}", worst <= ROUNDING


def numbers(value):
    """The numbers of a JSON value in its order, and all else as one text."""
    found = []

    def number(text):
        found.append(float(text))
        return "number"

    rest = json.loads(value, parse_float=number, parse_int=number)
    return np.array(found), json.dumps(rest)


def json_apart(ours, kept):
    """The same of two JSON files."""
    (a, rest_a), (b, rest_b) = numbers(ours), numbers(kept)
    if rest_a != rest_b:
        return "in more than numbers", False
    off = (np.abs(a - b) / np.maximum(np.abs(b), 1.0)).max()
    return f"by {off:.1e}", off <= WRITTEN


def installed(package):
    """Whether pip has installed it; a folder of reference values may have its name."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def apart(ours, kept):
    """How two files differ, in words, and whether that is rounding; None where their bytes are the same."""
    a, b = ours.read_bytes(), kept.read_bytes()
    if a == b:
        return None
    if ours.suffix == ".safetensors":
        return tensors_apart(ours, kept)
    if ours.suffix == ".json":
        return json_apart(a, b)
    if ours.suffix == ".rgb" and len(a) == len(b):
        off = np.abs(np.frombuffer(a, np.uint8).astype(int) - np.frombuffer(b, np.uint8))
        return f"by up to {off.max()} levels, in {(off > 0).mean():.1%} of the bytes", False
    if len(a) == len(b):
        return f"in {sum(x != y for x, y in zip(a, b))} of {len(a)} bytes", False
    return f"has {len(a)} bytes instead of {len(b)}", False


def compare(out, patterns):
    """Prints what differs; returns how many files do, but for rounding, and how many there are."""
    ours, kept = outputs(out, patterns), outputs(ROOT, patterns)
    differing = 0
    for file in sorted(ours | kept):
        if file not in ours or file not in kept:
            words, rounding = ("not kept here" if file in ours else "not made again"), False
        elif found := apart(out / file, ROOT / file):
            words, rounding = found
        else:
            continue
        differing += not rounding
        print(f"    {file}: {'rounding, ' if rounding else ''}{words}")
    return differing, len(ours | kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that isn't there yet")
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help="names without .py; all where none is given")
    for option, what in [
        ("--uta", "the program: exports assets/clip-emoji for timm"),
        ("--emoji", "the folder that `uta data get emoji` made"),
        ("--eva", "checkout of baaivision/EVA"),
        ("--uta-code", "checkout of jihaonew/UTA"),
        ("--clip", "checkout of openai/CLIP"),
        ("--mae", "checkout of facebookresearch/mae"),
        ("--unilm", "checkout of microsoft/unilm"),
        ("--devkit", "meta.mat of ILSVRC2012_devkit_t12"),
        ("--objectnet", "src/datasets/objectnet_metadata of mlfoundations/wise-ft"),
    ]:
        parser.add_argument(option, type=Path, metavar="PATH", help=what)
    args = parser.parse_args()
    known = [name for name, *_ in STEPS]
    if unknown := set(args.scripts) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: the scripts are {', '.join(known)}")
    if args.out.exists():
        parser.error(f"{args.out} is there already")
    given = {name: path.resolve() for name, path in vars(args).items() if isinstance(path, Path)}
    out = given["out"]
    (out / GOLDEN).mkdir(parents=True)
    for script in (ROOT / GOLDEN).glob("*.py"):
        shutil.copy(script, out / GOLDEN)
    for folder in ["retrieval", "families", "pixels"]:
        (out / GOLDEN / folder).mkdir()
    for path in READ:
        shutil.copytree(ROOT / path, out / path)

    failed = differing = 0
    for name, words, patterns, needs in STEPS:
        if args.scripts and name not in args.scripts:
            continue
        if lacking := [f"--{need.replace('_', '-')}" for need in needs if need not in given]:
            print(f"{name}: left out, needs {', '.join(lacking)}", flush=True)
            continue
        if name == "img2dataset_set" and not installed("img2dataset"):
            print(f"{name}: left out, needs img2dataset", flush=True)
            continue
        if "{timm}" in words:
            given["timm"] = out / "clip-emoji-timm"
            export = ["weights", "convert", ROOT / "assets/clip-emoji", "--to", "timm", "--out", given["timm"]]
            subprocess.run([given["uta"], *export], check=True, stdout=subprocess.DEVNULL)
        if name == "mojibake":
            # What the copy holds must be what the script writes.
            (out / "crates/uta-data/assets/mojibake.tsv").unlink()
        began = time.monotonic()
        command = [sys.executable, f"{name}.py", *(word.format(**given) for word in words)]
        done = subprocess.run(command, cwd=out / GOLDEN, capture_output=True, text=True)
        seconds = f"{time.monotonic() - began:.0f} s"
        if done.returncode:
            failed += 1
            last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
            print(f"{name}: FAILED after {seconds}: {last[0]}", flush=True)
            continue
        differ, files = compare(out, patterns)
        differing += differ
        result = f"{differ} of {files} files differ" if differ else f"nothing differs in {files} files"
        print(f"{name}: {result}, {seconds}", flush=True)
    print(f"{failed} scripts failed, {differing} files differ; what was made lies in {args.out}")
    sys.exit(1 if failed or differing else 0)


if __name__ == "__main__":
    main()
