"""How a loaded model computes its answers, and the flags that say so."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

from megatron_llava.platform.device import check_compiler


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where a model computes, and with what.

    Attributes:
        vision_on_cpu: the vision tower, and all between it and the decoder, stay in the memory of
            the host and compute there; the decoder's device gets the features alone.
        torch_compile: the vision tower is compiled, for any number of views.
    """

    vision_on_cpu: bool = False
    torch_compile: bool = False

    def check(self, device: str) -> None:
        """Raise ValueError, one line, for what this machine cannot do.

        Args:
            device: "cuda" or "cpu", what the decoder computes on.
        """
        if self.torch_compile:
            check_compiler("cpu" if self.vision_on_cpu else device)


def add_execution_flags(parser: argparse.ArgumentParser) -> None:
    """One for each field of ``Execution``."""
    parser.add_argument(
        "--vision-on-cpu",
        action="store_true",
        help="encode images on the CPU: the GPU holds the language model and gets the features",
    )
    parser.add_argument(
        "--torch-compile",
        action="store_true",
        help="compile the vision tower; the first images take a minute or more",
    )


def execution_of(arguments: argparse.Namespace) -> Execution:
    """What the flags said."""
    return Execution(**{field.name: getattr(arguments, field.name) for field in fields(Execution)})
