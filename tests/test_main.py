"""The program `mdtrajnet` around its command line."""

import signal
import subprocess
import sys

# Ctrl-C while a module is looked for; the first argument is its name.
PROGRAM = """
import os, signal, sys
import mdtrajnet_fast.__main__ as program

wanted = sys.argv.pop(1)

class Interrupt:
    def find_spec(name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt)
sys.exit(program.main())
"""


def run(tmp_path, *arguments):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)


def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(tmp_path):
    for module in ("mdtrajnet_fast.cli", "torch", "mdtrajnet_fast.train.fit"):
        done = run(tmp_path, module, "info")
        assert done.returncode == -signal.SIGINT
        assert done.stdout == done.stderr == ""


def test_ctrl_c_in_a_command_is_said(tmp_path):
    done = run(tmp_path, "rdkit.Chem", "simulate", "CCOCCO", "--duration", "5")
    assert done.returncode == 130
    assert done.stderr == "mdtrajnet simulate: interrupted; what is written stays\n"
