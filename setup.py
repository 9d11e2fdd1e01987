"""Builds the native extension ``mdtrajnet_fast._C`` with ninja; the rest is in pyproject.toml.

Beside it, in ``lib``, come ``libmdtrajnet.so`` and its header, for programs without Python: of the
same objects, without the bindings and CUDA.

The extension is torch-free: it takes numpy arrays, raw pointers and stream handles, so the build
needs pybind11, ninja and a C++17 compiler with OpenMP, and one binary serves every torch version.
CUDA kernels are compiled when nvcc is found (PATH, then CUDA_HOME); ``MDTRAJNET_CUDA=0`` leaves
them out.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall"]
CXX_FLAGS += ["-fno-math-errno"]
# A translation unit that needs more than the baseline instruction set says so in its name, and is
# called only after a check of the processor at run time.
ISA_FLAGS = {
    "_avx2": ["-mavx2", "-mfma"],
    "_avx512": [
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
        "-mprefer-vector-width=512",
    ],
}
# The neighbour list decides pairs at the cutoff in several places, which must agree to the bit.
FILE_FLAGS = {"neighbors.cpp": ["-ffp-contract=off"]}

NVCC_MINIMUM = (11, 8)  # the first that knows compute_90
NVCC_FLAGS = [
    *("-O3", "-std=c++17", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
    *("-gencode", "arch=compute_80,code=sm_80"),
    *("-gencode", "arch=compute_90,code=sm_90"),
    *("-gencode", "arch=compute_90,code=compute_90"),
]


def say(text: str) -> None:
    print(f"mdtrajnet_fast: {text}", flush=True)


def fail(text: str) -> None:
    sys.exit(f"\nmdtrajnet_fast: build failed: {text}\n")


def find_cxx() -> str:
    """The C++ compiler: $CXX, else g++; it must build an OpenMP program."""
    cxx = os.environ.get("CXX", "g++")
    probe = "#include <omp.h>\nint main() { return omp_get_max_threads() > 0 ? 0 : 1; }\n"
    command = [*shlex.split(cxx), "-std=c++17", "-fopenmp", "-x", "c++", "-", "-o", os.devnull]
    try:
        result = subprocess.run(command, input=probe, capture_output=True, text=True)
    except OSError as error:
        fail(f"no C++ compiler: {cxx!r}: {error.strerror}. Install g++ 9 or newer, or set CXX.")
    if result.returncode:
        fail(f"{cxx!r} cannot build C++17 with OpenMP; set CXX to one that can:\n{result.stderr}")
    return cxx


def find_nvcc() -> str | None:
    """The path of nvcc, or None, saying why."""
    if os.environ.get("MDTRAJNET_CUDA") == "0":
        say("CUDA kernels left out: MDTRAJNET_CUDA=0")
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)
    if nvcc is None:
        say("CUDA kernels left out: no nvcc on PATH or in CUDA_HOME/bin")
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None or tuple(map(int, found.groups())) < NVCC_MINIMUM:
        version = ".".join(found.groups()) if found else "of unknown version"
        fail(
            f"{nvcc} is {version}, but compute capability 9.0 needs CUDA 11.8 or newer. "
            "Put a newer nvcc first on PATH, or set MDTRAJNET_CUDA=0 to build without CUDA."
        )
    say(f"CUDA kernels built with {nvcc} ({'.'.join(found.groups())})")
    return nvcc


def sources(nvcc: str | None) -> list[Path]:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return [
        *sorted(CSRC.glob("*.cpp")),
        *(source for source in sorted(CSRC.glob("cpu/*.cpp")) if x86 or not isa_of(source)),
        *(sorted(CSRC.glob("cuda/*.cu")) if nvcc else []),
    ]


def isa_of(source: Path) -> str | None:
    """The instruction set that a source file's name asks for, without its underscore."""
    return next((suffix[1:] for suffix in ISA_FLAGS if source.stem.endswith(suffix)), None)


@dataclass
class NinjaFile:
    """Writes build.ninja; ninja repeats a step when its command, source or a header changes."""

    folder: Path
    target: Path
    cxx: str
    nvcc: str | None

    @property
    def library(self) -> Path:
        """What is for C: libmdtrajnet.so, beside which its header is put."""
        return self.target.parent / "lib" / "libmdtrajnet.so"

    def write(self) -> None:
        import pybind11

        includes = [CSRC, pybind11.get_include(), sysconfig.get_path("include")]
        include_flags = [f"-I{path}" for path in dict.fromkeys(map(str, includes))]
        lines = [
            "rule cxx",
            f"  command = {self.cxx} -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = C++ $name",
            "rule nvcc",
            f"  command = {quote([self.nvcc or 'nvcc'])} -MD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = CUDA $name",
            "rule link",
            f"  command = {self.linker()}",
            "  description = link $out",
            "rule library",
            f"  command = {self.cxx} -shared -fopenmp {quote(self.library_flags())} $in -o $out",
            "  description = link $out",
        ]
        extension, library = [], []
        files = sources(self.nvcc)
        isas = [isa for isa in map(isa_of, files) if isa]
        for source in files:
            name = source.relative_to(CSRC)
            output = self.folder / f"{name}.o"
            if source.name != "c_api.cpp":
                extension.append(output)
            if source.suffix == ".cpp" and not source.stem.startswith("bindings"):
                library.append(output)
            if source.suffix == ".cu":
                rule = "nvcc"
                flags = [*NVCC_FLAGS, f"-I{CSRC}"]
            else:
                rule = "cxx"
                isa = isa_of(source)
                flags = [*CXX_FLAGS, *FILE_FLAGS.get(source.name, []), *include_flags]
                flags += ISA_FLAGS[f"_{isa}"] if isa else []
            if source.stem.startswith("bindings"):
                flags += self.defines(sorted(set(isas)))
            lines += [
                f"build {path(output)}: {rule} {path(source)}",
                f"  flags = {quote(flags)}",
                f"  name = {name}",
            ]
        lines += [
            f"build {path(self.target)}: link {' '.join(map(path, extension))}",
            f"build {path(self.library)}: library {' '.join(map(path, library))}",
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.library.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CSRC / "mdtrajnet.h", self.library.parent)
        (self.folder / "build.ninja").write_text("\n".join(lines) + "\n")

    def defines(self, isas: list[str]) -> list[str]:
        flags = [
            f'-DMDTRAJNET_CXX_FLAGS="{" ".join(CXX_FLAGS)}"',
            f'-DMDTRAJNET_INSTRUCTION_SETS="{" ".join(["base", *isas])}"',
        ]
        return [*flags, "-DMDTRAJNET_CUDA"] if self.nvcc else flags

    def linker(self) -> str:
        if self.nvcc:  # nvcc knows where its static runtime lies
            command = [self.nvcc, "-shared", "-cudart", "static", "-Xcompiler", "-fopenmp"]
            return quote(command) + " $in -o $out"
        return f"{self.cxx} -shared -fopenmp $in -o $out"

    def library_flags(self) -> list[str]:
        exports = f"-Wl,--version-script={CSRC / 'exports.map'}"
        return [exports, "-Wl,-z,defs", f"-Wl,-soname,{self.library.name}"]


def path(value: Path) -> str:
    """A path as ninja spells it."""
    return str(value).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def quote(words: list[str]) -> str:
    """A command line for the shell, as ninja spells it."""
    return shlex.join(words).replace("$", "$$")


class NinjaBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cxx, nvcc = find_cxx(), find_nvcc()
        folder = Path(self.build_temp).resolve()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        NinjaFile(folder, target, cxx, nvcc).write()
        say(f"C++ with {cxx}: {', '.join(str(p.relative_to(CSRC)) for p in sources(nvcc))}")
        jobs = os.environ.get("MAX_JOBS")
        command = [sys.executable, "-m", "ninja", "-C", str(folder)]
        command += ["-j", jobs] if jobs else []
        if subprocess.run(command).returncode:
            fail("the compiler's own message is above.")
        say(f"built {target.name}")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        folder = Path("mdtrajnet_fast", "lib")
        shutil.copytree(Path(self.build_lib) / folder, ROOT / folder, dirs_exist_ok=True)


setup(
    packages=[
        *find_packages(include=["mdtrajnet_fast", "mdtrajnet_fast.*"]),
        "mdtrajnet_fast.kernels",
    ],
    package_dir={"mdtrajnet_fast.kernels": "kernels"},
    ext_modules=[Extension("mdtrajnet_fast._C", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
