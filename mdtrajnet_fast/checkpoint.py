""":mod:`mdtrajnet_fast.model.checkpoint` by the name that it had before there were packages."""

import sys

from .model import checkpoint

sys.modules[__name__] = checkpoint
