"""The learned rows that stand among an image's tokens, or are added to them.

Shape suffixes: S special rows, P positions of tiles, H language width.
"""

from __future__ import annotations

import math

import torch
from megatron.core.transformer.module import MegatronModule

from megatron_llava.config.image import ImageSettings

OPTIONAL_ROWS = (
    "image_newline",
    "image_separator",
    "image_start",
    "image_end",
    "tile_position_embedding",
)
"""Parameters that a checkpoint may lack: a run that begins with one starts them anew."""


def add_image_rows(
    model: MegatronModule, settings: ImageSettings, hidden_size: int, dtype: torch.dtype
) -> None:
    """Give the model those of OPTIONAL_ROWS that the settings ask for.

    Rows that are tokens are drawn as LLaVA draws ``image_newline``: normal with a standard
    deviation of hidden_size ** -0.5, from torch's seed alone, so that every rank and every layout
    draws the same. Positions are zeros: they change nothing until they learn.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())

    def drawn() -> torch.nn.Parameter:
        row = torch.randn(hidden_size, generator=generator, device="cpu")
        return torch.nn.Parameter((row * hidden_size**-0.5).to(dtype))

    if settings.image_newline:
        model.image_newline = drawn()
    if settings.image_separator:
        model.image_separator = drawn()
    if settings.image_start_end:
        model.image_start, model.image_end = drawn(), drawn()
    if settings.tile_position_embedding:
        positions = math.prod(settings.position_grid)
        zeros = torch.zeros(positions, hidden_size, dtype=dtype)
        model.tile_position_embedding = torch.nn.Parameter(zeros)


def special_rows(model: MegatronModule, settings: ImageSettings) -> torch.Tensor:
    """[S, H], the rows that tokens may name, in the order of ``vision.merge_shape``'s taps."""
    names = ("image_newline", "image_separator", "image_start", "image_end")
    rows = [getattr(model, name, None) for name in names[: settings.num_special_rows]]
    # A row that is off is named by no token; it has the type of the projector's output, and the
    # place of the decoder's rows: the projector may compute elsewhere.
    weight = next(model.vision_projection.parameters())
    words = model.language_model.embedding.word_embeddings.weight
    off = weight.new_zeros(model.config.hidden_size, device=words.device)
    return torch.stack([off if row is None else row for row in rows])


def position_rows(model: MegatronModule) -> torch.Tensor | None:
    """[P, H], the rows that are added to the features of tiles, None where positions are off."""
    return getattr(model, "tile_position_embedding", None)
