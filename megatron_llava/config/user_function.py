"""A function of the user's own, named on a command line."""

import importlib
from collections.abc import Callable
from typing import Any


def load_function(flag: str, name: str) -> Callable[..., Any]:
    """What ``MODULE:FUNCTION`` names.

    Raises:
        ValueError: there is no such function; one line naming the flag.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{flag} {name}: expected MODULE:FUNCTION found on PYTHONPATH: {error}"
        ) from error
    if not callable(found):
        raise ValueError(f"{flag} {name}: is no function")
    loaded: Callable[..., Any] = found
    return loaded
