"""How a loaded model computes its answers, and the flags that say so."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where a model computes, and with what.

    Attributes:
        vision_on_cpu: the vision tower, and all between it and the decoder, stay in the memory of
            the host and compute there; the decoder's device gets the features alone.
    """

    vision_on_cpu: bool = False


def add_execution_flags(parser: argparse.ArgumentParser) -> None:
    """One for each field of ``Execution``."""
    parser.add_argument(
        "--vision-on-cpu",
        action="store_true",
        help="encode images on the CPU: the GPU holds the language model and gets the features",
    )


def execution_of(arguments: argparse.Namespace) -> Execution:
    """What the flags said."""
    return Execution(**{field.name: getattr(arguments, field.name) for field in fields(Execution)})
