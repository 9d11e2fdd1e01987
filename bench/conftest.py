"""One thread unless asked for more, and the benches' own modules importable."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from providers import THREADS  # noqa: E402

torch.set_num_threads(THREADS)
