"""Keys and values of the rows that sequences have had, so that a new row computes itself alone.

Shape suffixes: T packed rows, P sequences, S slots of a sequence, N query heads, G key/value heads,
D head channels, R rows of a step, one of each sequence and padding behind.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class KeyValueCache:
    """A prompt's pack fills it; each step then adds a row to every sequence.

    Args:
        cu_seqlens: int32 [P + 1], cumulative lengths of the sequences of the pack.
        room: steps that may follow.
    """

    def __init__(self, cu_seqlens: torch.Tensor, room: int) -> None:
        starts, device = cu_seqlens[:-1].long(), cu_seqlens.device
        self.lengths = cu_seqlens[1:] - starts
        """int64 [P], rows of each sequence so far."""
        self.longest = int(self.lengths.max())
        self._slots = self.longest + room
        self._sequences = torch.arange(len(starts), device=device)
        sequence = torch.repeat_interleave(self._sequences, self.lengths)
        rows = torch.arange(len(sequence), device=device)
        self._slot_of_row = sequence * self._slots + rows - starts[sequence]
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.holds_prompt = False

    def fill(self, layer: int, key_TGD: torch.Tensor, value_TGD: torch.Tensor) -> None:
        """Keep the rows of the prompts."""
        shape = (len(self.lengths), self._slots)

        def kept(tensor: torch.Tensor) -> torch.Tensor:
            flat = tensor.new_zeros(shape[0] * shape[1], *tensor.shape[1:])
            return flat.index_copy_(0, self._slot_of_row, tensor).unflatten(0, shape)

        self._layers[layer] = kept(key_TGD), kept(value_TGD)

    def next_positions(self) -> torch.Tensor:
        """int64 [P], the place in its sequence of the row that each has in the step that begins."""
        self.holds_prompt = True
        positions = self.lengths
        self.lengths = self.lengths + 1
        self.longest += 1
        assert self.longest <= self._slots, "more steps than there is room for"
        return positions

    def attend(
        self,
        layer: int,
        query_RND: torch.Tensor,
        key_RGD: torch.Tensor,
        value_RGD: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Keep the new rows, and attend from each to all of its sequence.

        Returns:
            [R, N * D]; zeros for rows behind the P sequences.
        """
        keys_PSGD, values_PSGD = self._layers[layer]
        count = len(self.lengths)
        keys_PSGD[self._sequences, self.lengths - 1] = key_RGD[:count]
        values_PSGD[self._sequences, self.lengths - 1] = value_RGD[:count]
        slots = torch.arange(self.longest, device=self.lengths.device)
        seen_PS = slots < self.lengths[:, None]
        out_PN1D = F.scaled_dot_product_attention(
            query_RND[:count, :, None],
            keys_PSGD[:, : self.longest].transpose(1, 2),
            values_PSGD[:, : self.longest].transpose(1, 2),
            attn_mask=seen_PS[:, None, None],
            scale=scale,
            enable_gqa=True,
        )
        return F.pad(out_PN1D.flatten(1), (0, 0, 0, len(query_RND) - count))
