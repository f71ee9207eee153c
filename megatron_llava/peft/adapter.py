"""The two factors of a low-rank adapter.

Shape suffixes: ... positions, P targeted parts of a fused linear (query, key, value; gate, up),
R rank, I inputs and O outputs of the linear on this tensor-parallel rank.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import torch
import torch.nn.functional as F


class Adapter(torch.nn.Module):
    """y += scaling * B_p A_p dropout(x) for the outputs of each part p (Hu et al., LoRA, 2021).

    Every part has its own A, as adapters of ``peft`` have; B holds the rows of all parts in the
    order of the fused weight. The parts are one product: row o of B meets the A of its own part
    and zeros elsewhere. Rows of parts without an adapter stay zero. One dropout mask serves all
    parts of a linear.

    Args:
        rank: of the factors.
        inputs: I.
        mask_OP: bool, which outputs belong to which part.
        scaling: factor of the product.
        dropout: share of the inputs that are left out while training.
        dtype: of the factors.
    """

    def __init__(
        self,
        rank: int,
        inputs: int,
        mask_OP: torch.Tensor,
        *,
        scaling: float,
        dropout: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        outputs, parts = mask_OP.shape
        self.scaling, self.dropout = scaling, dropout
        self.a = torch.nn.Parameter(torch.zeros(parts, rank, inputs, dtype=dtype))
        self.b = torch.nn.Parameter(torch.zeros(outputs, rank, dtype=dtype))
        self.register_buffer("mask_OP", mask_OP, persistent=False)

    def forward(
        self, x: torch.Tensor, exchange: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """[..., I] to what the adapter adds to the outputs of this rank, [..., O].

        A module is called as a whole because core gathers a module's parameters, where that is
        overlapped, when it is called.

        Args:
            exchange: makes of this rank's products with every A, [..., P * R], the ones that its B
                meets.
        """
        dropped = F.dropout(x, self.dropout, self.training)
        low = F.linear(dropped, self.a.flatten(0, 1)) * self.scaling
        return F.linear(exchange(low), spread(self.b, self.mask_OP))

    def delta(self) -> torch.Tensor:
        """[O, I], what the adapter adds to the weight of this rank."""
        return self.scaling * spread(self.b, self.mask_OP) @ self.a.flatten(0, 1)


def spread(b_OR: torch.Tensor, mask_OP: torch.Tensor) -> torch.Tensor:
    """[O, P * R]: each row of B in the columns of its part, zeros in the others."""
    return (b_OR[:, None] * mask_OP[:, :, None]).flatten(1)


def drawn_a(rank: int, inputs: int, seed: int, layer: int, part: str) -> torch.Tensor:
    """float32 [R, inputs], A at the start of training, the same at every parallel layout.

    As ``peft`` draws it: uniform, Kaiming's bound for a slope of sqrt(5), which is inputs ** -0.5.
    B starts at zero, so that adapters change nothing at first.

    Args:
        inputs: of the whole linear.
        layer: number of the decoder layer in the whole model.
        part: name of the linear in ``transformers``.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {layer} {part}".encode()))
    # The device is named: a model may be built on another one, or on none.
    uniform = torch.rand(rank, inputs, generator=generator, device="cpu")
    return (2 * uniform - 1) / math.sqrt(inputs)
