""":mod:`mdtrajnet_fast.analysis.trust` by the name that it had before there were packages."""

import sys

from .analysis import trust

sys.modules[__name__] = trust
