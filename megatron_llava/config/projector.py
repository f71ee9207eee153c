"""LLaVA's names of projector types, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINEARS = re.compile(r"mlp([1-9][0-9]*)x_(?:res([1-9][0-9]*)x_)?(gelu|relu)")


@dataclass(frozen=True, kw_only=True)
class ProjectorShape:
    """A projector: linears with an activation between, then residual blocks."""

    linears: int
    """The first from the tower's width to the language model's, the others of the latter."""

    activation: str
    """'gelu', the exact-erf one, or 'relu'."""

    blocks: int = 0
    """Blocks y = n + W2 act(W1 n) with n = LayerNorm(x), as the original code has them."""

    in_sequence: bool = True
    """Whether the original code numbers the parts; its 'linear' is a lone layer."""


def parse_projector_type(name: str) -> ProjectorShape:
    """`linear`, `mlp{n}x_gelu`, `mlp{n}x_relu`, or either with blocks: `mlp{n}x_res{m}x_gelu`.

    Raises:
        ValueError: another name.
    """
    if name == "linear":
        return ProjectorShape(linears=1, activation="gelu", in_sequence=False)
    match = _LINEARS.fullmatch(name)
    if match is None:
        raise ValueError(
            f"--mm-projector-type {name}: expected linear, mlpNx_gelu, mlpNx_relu or "
            "mlpNx_resMx_gelu, such as mlp2x_gelu"
        )
    linears, blocks, activation = match.groups()
    return ProjectorShape(linears=int(linears), activation=activation, blocks=int(blocks or 0))
