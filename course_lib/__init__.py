"""Video diffusion, rebuilt small enough to run: the package behind the notebooks.

One axis vocabulary, declared here and nowhere else; every annotation and docstring uses it.

| axis | meaning                        |
|------|--------------------------------|
| `b`  | clip (index in the batch)      |
| `c`  | channel                        |
| `f`  | frame                          |
| `h`  | height, downwards              |
| `w`  | width, rightwards              |
| `l`  | text token                     |
| `d`  | size of an embedding           |
| `y`, `x` | height, width of latents   |

Video is always `(b, c, f, h, w)`, one clip `(c, f, h, w)`, images `(b, c, h, w)`: floats in
[-1, 1].
"""

import os

# Idle OpenMP threads spin for a shorter time; libgomp reads this when torch is loaded. install.py
# sets it for notebooks, which import torch first. Measured: docs/decisions.md
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

__version__ = "0.1.0"
