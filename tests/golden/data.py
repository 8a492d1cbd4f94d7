"""Reference values for uta-data, from Pillow, torchvision and open_clip.

    python tests/golden/data.py        rewrites tests/golden/data/

Made with Pillow 13.0.0, torchvision 0.28.0, open_clip 3.3.0. Decoded and resized images are raw bytes, [height, width, 3].
"""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import open_clip.tokenizer as clip_tokenizer
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F
from torchvision.transforms import functional_tensor as FT  # noqa: F401  (older releases)
