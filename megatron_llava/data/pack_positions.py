"""Which positions of a sequence the tokens of a pack take.

Sizes in shapes: R positions with padding, t tokens of all samples before images are expanded,
L positions with a loss, n sequences in cu_seqlens, i images.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from megatron_llava.data.sample import Sample
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX


def padded_rows(num_rows: int, pad_multiple: int = 1, pad_to: int | None = None) -> int:
    """R for a pack of `num_rows` positions: the next multiple of pad_multiple (not 0), or pad_to.

    Raises:
        ValueError: pad_to is less than the pack needs, or not a multiple of pad_multiple.
    """
    rows = max(-(-num_rows // pad_multiple), 1) * pad_multiple
    if pad_to is None:
        return rows
    if pad_to < rows or pad_to % pad_multiple:
        raise ValueError(
            f"cannot pad {num_rows} positions to {pad_to}: "
            f"it must be at least {rows} and a multiple of {pad_multiple}"
        )
    return pad_to


class PackText:
    """The token ids of all samples behind each other, images not yet expanded."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        nothing: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.tokens = np.concatenate([nothing, *(s.token_ids for s in samples)])
        mask = np.concatenate([nothing, *(s.label_mask for s in samples)])
        self.is_image = self.tokens == IMAGE_TOKEN_INDEX
        self.supervised = mask == 1
        lengths = np.array([len(s.token_ids) for s in samples], dtype=np.int64)
        self.token_ends = np.cumsum(lengths)
        self.samples = np.repeat(np.arange(len(samples)), lengths)
        assert len(mask) == len(self.tokens) and not (self.supervised & self.is_image).any()
        assert lengths.min(initial=1) > 0

    def sample_sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sum over the tokens of each sample, of one value a token."""
        return np.diff(np.cumsum(values)[self.token_ends - 1], prepend=0)


class Positions(NamedTuple):
    """Where a pack's tokens stand once its images are expanded."""

    row_starts: NDArray[np.int64]
    """[t], the first position of each token."""

    cu_seqlens: NDArray[np.int32]
    """[n + 1], of each sample, and of the padding behind them where there is any."""

    num_rows: int
    """Without padding."""

    attended: int
    """Sum of the squared positions of each sample, without padding."""

    @classmethod
    def of(
        cls,
        text: PackText,
        image_tokens: NDArray[np.int64],
        *,
        pad_multiple: int,
        pad_to: int | None,
        sequence_multiple: int,
    ) -> Self:
        """Those of a pack.

        Args:
            image_tokens: [i], visual tokens of each image.
            pad_multiple, pad_to, sequence_multiple: see `collate`.
        """
        rows_of_token = np.ones(len(text.tokens), dtype=np.int64)
        rows_of_token[text.is_image] = image_tokens
        sample_rows = text.sample_sums(rows_of_token)
        padding = -sample_rows % sequence_multiple
        before = np.cumsum(padding) - padding
        row_starts = np.cumsum(rows_of_token) - rows_of_token + before[text.samples]
        ends = [0, *np.cumsum(sample_rows + padding).tolist()]
        total_rows = padded_rows(ends[-1], pad_multiple, pad_to)
        bounds = ends + [total_rows] * (total_rows > ends[-1])
        return cls(
            row_starts=row_starts,
            cu_seqlens=np.array(bounds, dtype=np.int32),
            num_rows=int(rows_of_token.sum()),
            attended=int((sample_rows**2).sum()),
        )

    @property
    def total_rows(self) -> int:
        """R."""
        return int(self.cu_seqlens[-1])

    @property
    def sequence_starts(self) -> NDArray[np.int32]:
        """[R], where the sequence of each position begins."""
        return np.repeat(self.cu_seqlens[:-1], np.diff(self.cu_seqlens))


class Losses(NamedTuple):
    """Which positions have a loss; shapes and names as of PackedBatch."""

    loss_rows: NDArray[np.int64]
    loss_labels: NDArray[np.int64]
    loss_samples: NDArray[np.int64]
    sample_loss_tokens: NDArray[np.int64]
    num_loss_rows: int

    @classmethod
    def of(cls, text: PackText, positions: Positions) -> Self:
        """Those before supervised tokens."""
        starts = positions.row_starts
        # The first position of a sample has none before it; a supervised token there is no label.
        has_loss = text.supervised & (starts > positions.sequence_starts[starts])
        samples = text.samples[has_loss]
        return cls(
            loss_rows=starts[has_loss] - 1,
            loss_labels=text.tokens[has_loss],
            loss_samples=samples,
            sample_loss_tokens=np.bincount(samples, minlength=len(text.token_ends)),
            num_loss_rows=int(np.count_nonzero(has_loss)),
        )
