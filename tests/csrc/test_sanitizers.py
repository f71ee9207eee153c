"""The CPU's kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import runpy
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    *(ROOT / "csrc" / f"visual_pack_{name}.cpp" for name in ("cpu", "avx2", "avx512")),
    ROOT / "csrc/tiles_to_patches.cpp",
    ROOT / "tests/csrc/sanitized.cpp",
]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_the_kernels_of_the_cpu_stay_within_their_buffers(tmp_path):
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}")
    linked = subprocess.run(["c++", *SANITIZE, probe, "-o", tmp_path / "probe"], check=False)
    if linked.returncode:
        pytest.skip("the compiler has no sanitizers")
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="read")

    def compiled(source: Path) -> Path:
        output = tmp_path / f"{source.name}.o"
        flags = [*setup["CXX_FLAGS"], "-O1", "-g", *SANITIZE, *setup["level_flags"](source)]
        command = ["c++", *flags, "-I", ROOT / "csrc", "-c", source, "-o", output]
        subprocess.run(command, check=True)
        return output

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, SOURCES))
    program = tmp_path / "sanitized"
    subprocess.run(["c++", *SANITIZE, *objects, "-o", program], check=True)
    # torch's own libraries must not be preloaded into a program with AddressSanitizer.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("base") and done.stdout.endswith("checked\n")
