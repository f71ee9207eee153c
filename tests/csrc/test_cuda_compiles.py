"""Every CUDA kernel compiles without a warning for every architecture, and keeps to registers."""

import re
import runpy
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = runpy.run_path(str(ROOT / "setup.py"), run_name="read")
CUDA_HOME = SETUP["cuda_home"]()
# 1024 threads on an SM, 32 warps, are what the kernels count on, at 64 registers; 768 at 80.
MOST_REGISTERS = 80
REPORT = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@pytest.mark.skipif(CUDA_HOME is None, reason="needs nvcc")
def test_no_kernel_spills_registers_or_uses_a_stack(tmp_path):
    sources = sorted((ROOT / "csrc").glob("*.cu"))
    archs = SETUP["CUDA_ARCHS"].split(";")
    assert sources and len(archs) == 5

    def report(source: Path, arch: str) -> str:
        command = [CUDA_HOME / "bin/nvcc", *SETUP["CUDA_FLAGS"], "-I", ROOT / "csrc"]
        command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Werror", "all-warnings"]
        command += ["-Xptxas", "-v,-warn-spills,-warn-lmem-usage", "-Xcompiler", "-Wall,-Wextra"]
        output = tmp_path / f"{source.stem}_{arch}.o"
        done = subprocess.run(
            [*command, "-c", source, "-o", output], capture_output=True, text=True
        )
        assert done.returncode == 0, f"{source.name}, sm_{arch}:\n{done.stderr}"
        return done.stderr

    with ThreadPoolExecutor(2) as pool:
        jobs = [(source, arch) for source in sources for arch in archs]
        reports = list(pool.map(lambda job: report(*job), jobs))
    for (source, arch), said in zip(jobs, reports, strict=True):
        kernels = list(REPORT.finditer(said))
        assert kernels and {kernel["arch"] for kernel in kernels} == {arch}, source
        for kernel in kernels:
            spilled = [int(kernel[name]) for name in ("stack", "stores", "loads")]
            assert spilled == [0, 0, 0], (kernel["name"], arch, spilled)
            assert int(kernel["registers"]) <= MOST_REGISTERS, (kernel["name"], arch)
