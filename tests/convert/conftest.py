"""One process of its own for everything that needs Megatron-core on the CPU platform."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest


@pytest.fixture(scope="session")
def core_process():
    """Call as core_process(function, *arguments): runs there, returns or raises here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()
