""":mod:`mdtrajnet_fast.io.structures` by the name that it had before there were packages."""

import sys

from .io import structures

sys.modules[__name__] = structures
