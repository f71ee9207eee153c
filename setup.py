"""Build entry: the metadata is in pyproject.toml; this compiles csrc/ into one shared library.

csrc/*.cpp are compiled where there is a C++17 compiler, csrc/*.cu where there is an nvcc. torch is
not imported: its headers and libraries are found by their place, also in pip's isolated builds, and
only csrc/torch_*.cpp need them. What is left out is said, and the package then takes the
plain-torch path.

Build options, from the environment:
    MEGATRON_LLAVA_CUDA_ARCHS  GPU architectures, as in "80;90"; "none" leaves CUDA out
    CUDA_HOME                  the CUDA toolkit; without it that of the nvcc on PATH
    CXX, CXXFLAGS              the C++ compiler and more flags for it
"""

import importlib.util
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CUDA_ARCHS = "80;86;89;90;100"
# The oldest torch whose stable ABI the bindings use: 2.10.
TORCH_TARGET_VERSION = "0x020a000000000000"
# No contraction to fused multiply-add: the result is the same on every processor, and on the GPU.
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra"]
CUDA_FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-Xcompiler", "-fPIC", "--threads", "2"]
# Code for processors that have more than x86-64 promises; chosen from at run time.
LEVELS = {"_avx2": ["-mavx2"], "_avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]}


class BuildKernels(build_ext):
    """Compile and link with the compilers themselves: nothing of Python's own flags is wanted."""

    def build_extension(self, ext):
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        if shutil.which(compiler[0]) is None:
            self.warn(f"no C++ compiler ({compiler[0]}): the plain-torch path will be used")
            return
        archs = os.environ.get("MEGATRON_LLAVA_CUDA_ARCHS", CUDA_ARCHS)
        cuda = None if archs == "none" else cuda_home()
        torch = torch_folder()
        if torch is None:
            self.warn("torch is not installed here: its operators are left out; install it first")
        commands, objects = [], []
        for source in sorted([*CSRC.glob("*.cpp"), *CSRC.glob("*.cu")]):
            command = self.command_for(source, compiler, torch, cuda, archs)
            if command is None:
                continue
            output = Path(self.build_temp).absolute() / f"{source.name}.o"
            output.parent.mkdir(parents=True, exist_ok=True)
            objects.append(str(output))
            commands.append([*command, "-I", str(CSRC), "-c", str(source), "-o", str(output)])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, commands))
        library = Path(self.get_ext_fullpath(ext.name)).absolute()
        library.parent.mkdir(parents=True, exist_ok=True)
        run([*compiler, "-shared", "-o", str(library), *objects, *link_flags(torch, cuda)])

    def command_for(self, source, compiler, torch, cuda, archs):
        """What compiles a source, None where it is to be left out."""
        needs_torch = source.name.startswith("torch_")
        if needs_torch and torch is None or source.suffix == ".cu" and cuda is None:
            return None
        if source.suffix == ".cu":
            return [str(cuda / "bin/nvcc"), *CUDA_FLAGS, *gencode(archs)]
        source_hash = runpy.run_path(ROOT / "megatron_llava/platform/csrc_hash.py")["csrc_hash"]
        command = [*compiler, *CXX_FLAGS, f'-DCSRC_HASH="{source_hash(CSRC)}"']
        if cuda is not None:
            command += [f'-DCUDA_ARCHS="{archs}"', "-I", str(cuda / "include")]
        if needs_torch:
            command += ["-isystem", str(torch / "include")]
            command.append(f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}")
        return command + level_flags(source) + shlex.split(os.environ.get("CXXFLAGS", ""))


def level_flags(source):
    """The flags for a file whose name ends with a level of x86-64 processors."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    return next((flags for level, flags in LEVELS.items() if source.stem.endswith(level)), [])


def run(command):
    """Run a compiler; its messages go to where pip shows them."""
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True)


def torch_folder():
    """The torch of the environment that is installed into: isolated builds hide it from import."""
    found = importlib.util.find_spec("torch")
    folders = [Path(found.origin).parent] if found and found.origin else []
    folders += [Path(sysconfig.get_path(name)) / "torch" for name in ("platlib", "purelib")]
    return next((f for f in folders if (f / "include/torch/csrc/stable").is_dir()), None)


def cuda_home():
    """The CUDA toolkit. The nvcc on PATH may be a wrapper, so it is asked where it lies."""
    if os.environ.get("CUDA_HOME"):
        home = Path(os.environ["CUDA_HOME"])
        return home if (home / "bin/nvcc").is_file() else None
    if shutil.which("nvcc") is None:
        return None
    said = subprocess.run(["nvcc", "--dryrun", "x.cu"], capture_output=True, text=True)
    here = re.search(r"^#\$ _HERE_=(.+)$", said.stdout + said.stderr, re.MULTILINE)
    return Path(here[1]).parent if here else None


def gencode(archs):
    """nvcc's flags for machine code of each architecture, and PTX of the newest for later ones."""
    numbers = sorted(archs.split(";"), key=int)
    flags = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers[:-1]]
    newest = numbers[-1]
    return [*flags, f"-gencode=arch=compute_{newest},code=[sm_{newest},compute_{newest}]"]


def link_flags(torch, cuda):
    """The libraries; the CUDA runtime is linked in, so that the library loads without a GPU."""
    flags = ["-Wl,--exclude-libs,ALL"]
    if torch is not None:
        flags += ["-L", str(torch / "lib"), "-ltorch_cpu"]
    if cuda is not None:
        folder = next(f for f in (cuda / "lib64", cuda / "lib") if f.is_dir())
        flags += ["-L", str(folder), "-lcudart_static", "-lrt", "-lpthread"]
    return [*flags, "-ldl"]


if __name__ != "read":  # tests read the flags from here
    setup(
        ext_modules=[Extension("megatron_llava._csrc", [], optional=True, py_limited_api=True)],
        cmdclass={"build_ext": BuildKernels},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
