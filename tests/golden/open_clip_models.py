"""Every model configuration of open_clip, as it ships them: `python open_clip_models.py` rewrites `open_clip_models.json`.

Made with open_clip_torch 3.3.0.
"""

import json
from pathlib import Path

import open_clip

models = {name: open_clip.get_model_config(name) for name in sorted(open_clip.list_models())}
lines = [f"{json.dumps(name)}: {json.dumps(config, separators=(',', ':'))}" for name, config in models.items()]
(Path(__file__).parent / "open_clip_models.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
