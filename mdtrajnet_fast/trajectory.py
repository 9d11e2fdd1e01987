""":mod:`mdtrajnet_fast.io.trajectory` by the name that it had before there were packages."""

import sys

from .io import trajectory

sys.modules[__name__] = trajectory
