"""The native module: what it says of its build, and that it loads without torch and CUDA."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import torch

import mdtrajnet_fast
from mdtrajnet_fast import _C


def test_build_info():
    info = _C.build_info()
    assert set(info) == {"compiler", "flags", "instruction_sets", "openmp", "cuda"}
    assert "-O3" in info["flags"] and "-march=native" not in info["flags"]
    assert info["instruction_sets"][0] == "base"
    assert info["openmp"] >= 201511
    if info["cuda"] is not None:
        assert int(info["cuda"]["nvcc"].split(".")[0]) >= 11
        assert info["cuda"]["archs"] == ["80", "90"]


def test_cuda_devices_or_the_reason_for_none():
    found = _C.cuda_devices()
    assert bool(found["devices"]) != bool(found["error"])
    if _C.build_info()["cuda"] is None:
        assert "built without CUDA" in found["error"]
    elif torch.cuda.is_available():
        assert len(found["devices"]) == torch.cuda.device_count()
        first = found["devices"][0]
        assert first["name"] == torch.cuda.get_device_name(0)
        assert first["compute_capability"] == torch.cuda.get_device_capability(0)
        assert first["memory"] == torch.cuda.get_device_properties(0).total_memory


def test_the_module_works_without_torch():
    code = f"""
import importlib.util, sys
sys.modules["torch"] = None  # any import of it raises
spec = importlib.util.spec_from_file_location("_C", {_C.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
pair = [[0.0, 0, 0], [1.0, 0, 0]]
row_ptr, neighbor, shift = module.neighbor_list(pair, 2.0, None, None, None, None)
assert row_ptr.tolist() == [0, 1, 2] and neighbor.tolist() == [1, 0] and not shift.any()
print(len(module.cuda_devices()["devices"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(_C.cuda_devices()["devices"])


def test_no_cuda_library_is_linked():
    libraries = subprocess.run(
        ["ldd", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    assert "libgomp" in libraries
    assert not [line for line in libraries.splitlines() if "libcuda" in line or "libtorch" in line]


def test_the_stubs_name_what_the_module_has():
    stubs = ast.parse((Path(mdtrajnet_fast.__file__).parent / "_C.pyi").read_text())
    stubbed = {node.name for node in stubs.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert stubbed == {name for name in dir(_C) if not name.startswith("_")}


def test_the_installed_package_is_typed():
    assert (Path(mdtrajnet_fast.__file__).parent / "py.typed").exists()


def test_the_version_is_the_same_everywhere():
    root = Path(__file__).parent.parent
    said = re.search(r"^version: (.*)$", (root / "CITATION.cff").read_text(), re.MULTILINE)
    assert said is not None and said[1] == mdtrajnet_fast.__version__
    assert f"\n## {mdtrajnet_fast.__version__}" in (root / "CHANGELOG.md").read_text()
    assert 'attr = "mdtrajnet_fast.__version__"' in (root / "pyproject.toml").read_text()


def test_the_source_distribution_is_complete(tmp_path):
    """All of the source tree that no build makes: kernels, data, tests, documentation."""
    root = Path(__file__).parent.parent
    tree = tmp_path / "tree"
    left_out = shutil.ignore_patterns(
        ".git", "build", "*.egg-info", "*.so", "__pycache__", ".*cache", "data", "runs", ".venv*"
    )
    shutil.copytree(root, tree, ignore=left_out, symlinks=True)
    code = "import setuptools.build_meta as b; b.build_sdist('../made')"
    result = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (made,) = (tmp_path / "made").glob("*.tar.gz")
    assert made.name == f"mdtrajnet_fast-{mdtrajnet_fast.__version__}.tar.gz"
    with tarfile.open(made) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder, kinds in {
        "csrc": "*.cpp *.cu *.hpp *.h",
        "docs": "*.md *.py *.png",
        "examples": "*.py",
        "kernels": "*.py",
        "mdtrajnet_fast": "*.py *.safetensors *.json *.md *.js *.css *.html *.txt py.typed",
        "recipes": "*.toml *.smi",
        "tests": "*.py *.pt *.npz *.h5",
    }.items():
        for kind in kinds.split():
            there = {str(path.relative_to(tree)) for path in (tree / folder).rglob(kind)}
            assert there and not there - names, f"{folder}: {sorted(there - names)}"
    assert {"CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"} <= names
