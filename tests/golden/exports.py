"""Our exports load strictly in open_clip, timm and transformers, and give our numbers there:

    cargo run -p uta-model --example export -- OUT tests/golden/families/*/ eva02-b-16 ...
    python exports.py OUT

checks every `OUT/NAME/LAYOUT` against `families/NAME/expected.safetensors` where there is one; a net without one (a preset)
is only loaded. It prints one line each and ends with an error if any fails.
"""

import json
import sys
from pathlib import Path

import families  # registers the small architectures
import open_clip
import timm
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

HERE = Path(__file__).parent / "families"


def with_open_clip(path):
    config = json.loads((path / "open_clip_config.json").read_text())["model_cfg"]
    custom = config.pop("custom_text", False)
    net = (open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP)(**config)
    net.load_state_dict(load_file(path / "open_clip_model.safetensors"), strict=True)
    # And by its own way of reading a folder.
    open_clip.create_model(f"local-dir:{path}")
    return net.eval(), net.encode_image, net.encode_text


def with_timm(path):
    config = json.loads((path / "config.json").read_text())
    net = timm.create_model(config["architecture"], **config["model_args"])
    net.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    again = timm.create_model(f"local-dir:{path}", pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))
    return net.eval(), net, None


def with_transformers(path):
    net, report = CLIPModel.from_pretrained(path, output_loading_info=True)
    assert not any(report.values()), report
    image = lambda x: net.visual_projection(net.vision_model(pixel_values=x).pooler_output)
    text = lambda x: net.text_projection(net.text_model(input_ids=x).pooler_output)
    return net.eval(), image, text


READERS = {"open-clip": with_open_clip, "timm": with_timm, "hf": with_transformers}


@torch.no_grad()
def check(path):
    net, image, text = READERS[path.name](path)
    expected = HERE / path.parent.name / "expected.safetensors"
    if not expected.is_file():
        return "loads"
    expected = load_file(expected)
    error = lambda found, wanted: ((found - wanted).abs().max() / wanted.abs().max()).item()
    errors = [error(image(expected["input.images"]), expected["output.image"])]
    if text is not None:
        errors.append(error(text(expected["input.tokens"]), expected["output.text"]))
    assert max(errors) < 1e-5, errors
    return "relative error " + ", ".join(f"{e:.1e}" for e in errors)


if __name__ == "__main__":
    paths = [p for p in sorted(Path(sys.argv[1]).glob("*/*")) if p.name in READERS]
    assert paths, "nothing to check"
    for path in paths:
        if any(path.iterdir()):
            print(f"{path.parent.name} as {path.name}: {check(path)}", flush=True)
