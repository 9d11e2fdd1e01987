"""Signals that wait, and processes that do not hear them."""

import os
import signal
import subprocess
import sys

import pytest

from mdtrajnet_fast.io.interruptions import deaf_children, uninterrupted


def test_ctrl_c_waits_for_the_block():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever others left
    done = False
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done = True
    signal.signal(signal.SIGINT, before)
    assert done


def test_children_never_hear_ctrl_c():
    """Not even before their first line; their parent goes on hearing it."""
    script = "import time; time.sleep(0.3); print('done')"
    with deaf_children():
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child.send_signal(signal.SIGINT)
    assert child.communicate()[0] == "done\n" and child.returncode == 0
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
