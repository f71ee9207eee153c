"""How a loaded model computes its answers, and the flags that say so."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace
from typing import Literal

from megatron_llava.config.lora import LoraConfig
from megatron_llava.ops.four_bit import check_bitsandbytes
from megatron_llava.platform.device import check_compiler


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where a model computes, and with what.

    Attributes:
        vision_on_cpu: the vision tower, and all between it and the decoder, stay in the memory of
            the host and compute there; the decoder's device gets the features alone.
        torch_compile: the vision tower is compiled, for any number of views.
        load_in_4bit: the linears of the decoder's layers are held in 4 bits.
        bnb_4bit_quant_type, bnb_4bit_use_double_quant: how, as for training; None for nf4.
    """

    vision_on_cpu: bool = False
    torch_compile: bool = False
    load_in_4bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] | None = None
    bnb_4bit_use_double_quant: bool = False

    def check(self, device: str) -> None:
        """Raise ValueError, one line, for what does not fit together or this machine cannot do.

        Args:
            device: "cuda" or "cpu", what the decoder computes on.
        """
        if self.torch_compile:
            check_compiler("cpu" if self.vision_on_cpu else device)
        check_bitsandbytes(self.held(LoraConfig()))
        given = {
            f"--bnb-4bit-quant-type {self.bnb_4bit_quant_type}": self.bnb_4bit_quant_type,
            "--bnb-4bit-use-double-quant": self.bnb_4bit_use_double_quant,
        }
        for option, value in given.items():
            if value and not self.load_in_4bit:
                raise ValueError(
                    f"{option} is about --load-in-4bit, which is not given: add it, or drop the "
                    "flag"
                )

    def held(self, lora: LoraConfig) -> LoraConfig:
        """The settings of adapters, or of none, with how the weights beside them are held."""
        return replace(
            lora,
            load_in_4bit=self.load_in_4bit,
            bnb_4bit_quant_type=self.bnb_4bit_quant_type or "nf4",
            bnb_4bit_use_double_quant=self.bnb_4bit_use_double_quant,
        )


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
    parser.add_argument(
        "--load-in-4bit",
        action="store_true",
        help="hold the linears of the decoder's layers in 4 bits; needs bitsandbytes",
    )
    parser.add_argument(
        "--bnb-4bit-quant-type", choices=("nf4", "fp4"), help="levels of 4 bits (default: nf4)"
    )
    parser.add_argument(
        "--bnb-4bit-use-double-quant",
        action="store_true",
        help="hold the magnitudes of blocks in 8 bits instead of 32",
    )


def execution_of(arguments: argparse.Namespace) -> Execution:
    """What the flags said."""
    return Execution(**{field.name: getattr(arguments, field.name) for field in fields(Execution)})
