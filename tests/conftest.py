"""Make the helpers of this folder importable, and Megatron-core run here where there is no GPU."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from megatron_llava.platform import cpu

sys.path.insert(0, str(Path(__file__).parent))

# A busy machine is slow, not wrong.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# What a shell starts in the background ignores interrupts, and so do the programs that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    # Before any test imports megatron.core, which the tests of data/ do.
    cpu.install()


def pytest_configure(config: pytest.Config) -> None:
    """Leave out what core says of itself at import: it found no Apex, it is deprecated."""
    config.addinivalue_line("filterwarnings", r"ignore:::megatron\.core")


# They start programs: what they need of the pool is little, and the other process has time for it.
STARTED = ("test_compare_layouts.py", "test_evaluate.py", "test_lost_ranks.py")


@pytest.hookimpl(tryfirst=True)  # the hook of pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where pytest-xdist shares the tests out: those of a file stay together, for what they set up
    is made once; those of the pool of ranks come first and stay in one process."""
    groups = {}
    for item in items:
        folder, name = item.path.parent.name, item.path.name
        group = f"{folder}/{name}"
        if folder == "distributed":
            group = "started" if name in STARTED else folder
        groups[item] = group
        item.add_marker(pytest.mark.xdist_group(group))
    first = ("distributed", "started")
    items.sort(key=lambda item: first.index(groups[item]) if groups[item] in first else len(first))


@pytest.fixture(scope="session")
def cpu_platform() -> None:
    """Skip where the CPU platform is not installed, which is where torch sees a GPU."""
    if not cpu.is_installed():
        pytest.skip("the CPU platform is for machines without a GPU: set CUDA_VISIBLE_DEVICES=''")


@pytest.fixture(scope="session")
def single_rank(cpu_platform: None) -> Iterator[None]:
    """A world of one gloo rank with core's process groups, in the process of the tests."""
    from megatron_llava.convert.single_process import single_process

    with single_process():
        yield
