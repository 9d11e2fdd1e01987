"""The package's modules depend on each other in one direction, as their imports tell."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import mdtrajnet_fast

ROOT = Path(mdtrajnet_fast.__file__).parent
# What comes later may import what comes before. Files and observables come before rollouts, which
# write the one and are watched by the other.
LAYERS = (
    ("system",),
    ("processes",),
    ("mechanics",),
    ("neighbors",),
    ("ops",),
    ("model",),
    ("io",),
    ("analysis",),
    ("md",),
    ("data",),
    ("plots",),
    ("train",),
    ("report",),
    ("runs",),
    ("campaigns",),
    ("commands",),
    ("cli",),
    ("__main__",),
    ("checkpoint", "structures", "trajectory", "trust"),  # other names of modules
)
# Half a second each, which every command would take longer to start.
SLOW = (
    "matplotlib",
    "scipy.fft",
    "scipy.interpolate",
    "scipy.signal",
    "scipy.spatial",
    "scipy.stats",
)
RANK = {name: k for k, names in enumerate(LAYERS) for name in names}
MODULES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.name != "__init__.py")
TESTS = sorted(Path(__file__).parent.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Modules of the package that one imports, dotted; not those for type checkers alone."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    folder = path.relative_to(ROOT.parent).parent.parts
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            module = ".".join(x for x in (base, node.module) if x)
            found += [f"{module}.{alias.name}" for alias in node.names]
    return [name.split(".", 1)[1] for name in found if name.startswith("mdtrajnet_fast.")]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_in_one_direction(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports(path):
        other = name.split(".")[0]
        if other in RANK:
            assert RANK[other] <= RANK[own], f"{own} imports {name}, which comes after it"
        else:
            assert other in ("_C", "__version__", "kernels"), f"{name} has no layer"


def test_every_module_has_a_layer():
    assert {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in MODULES} - {"kernels"} == {
        *RANK
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_takes_long_to_import_waits_for_its_use(path):
    for node in ast.parse(path.read_text()).body:
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in modules:
            assert not name.startswith(SLOW), f"{path.name} imports {name} before it is needed"


@pytest.mark.parametrize("path", TESTS, ids=lambda p: p.stem)
def test_no_test_imports_another(path):
    names = {p.stem for p in TESTS if p.stem.startswith("test_")}
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {m.split(".")[0] for m in modules} & names, path


@pytest.mark.parametrize(
    "former, now",
    [
        ("checkpoint", "model.checkpoint"),
        ("structures", "io.structures"),
        ("trajectory", "io.trajectory"),
        ("trust", "analysis.trust"),
    ],
)
def test_modules_are_found_where_they_were(former, now):
    found = importlib.import_module(f"mdtrajnet_fast.{former}")
    assert found is importlib.import_module(f"mdtrajnet_fast.{now}")
    assert getattr(mdtrajnet_fast, former) is found
