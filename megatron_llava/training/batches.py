"""Batches on their way from the loader to this rank's device."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.run import RunConfig
from megatron_llava.data.loader import PackedDataLoader
from megatron_llava.data.loss_origins import with_loss_origins
from megatron_llava.data.pack_positions import padded_rows
from megatron_llava.data.packed_batch import TensorBatch
from megatron_llava.data.pad import pad_batch
from megatron_llava.data.sample import SampleStore
from megatron_llava.data.schedule import Schedule
from megatron_llava.data.share import Share, dealt_views, share_of_pack

_FP8_ROWS = 16
"""FP8 matrix products need a multiple of this many rows on each rank."""
_BLOCK_ROWS = 128
"""Rows that are gathered in blocks, of --fp8-recipe blockwise, are a multiple of this many."""


def _say(text: str) -> None:
    """Any rank may have to, while the first one waits for it."""
    print(text, file=sys.stderr, flush=True)


def row_multiple(config: RunConfig) -> int:
    """What the positions of a pack must be a multiple of."""
    parallel = config.parallel
    ranks = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    context = parallel.context_parallel_size
    chunks = 2 * context if context > 1 else 1
    rows = _FP8_ROWS if config.precision.fp8_format else 1
    if config.precision.fp8_recipe == "blockwise" and ranks > 1:
        rows = _BLOCK_ROWS
    return chunks * ranks * rows


def share_of_rank(config: RunConfig) -> Share:
    """Which share this rank has of packs that several ranks work on."""
    parallel = config.parallel
    context_rank = parallel_state.get_context_parallel_rank()
    tensor = parallel.tensor_model_parallel_size if parallel.vision_parallel == "data" else 1
    own = parallel_state.get_tensor_model_parallel_rank() if tensor > 1 else 0
    return Share(
        context_rank=context_rank,
        context_size=parallel.context_parallel_size,
        view_rank=context_rank * tensor + own,
        view_size=parallel.context_parallel_size * tensor,
    )


class BatchSource:
    """This rank's microbatches, and what is known of a step before it runs.

    Every rank lays out its packs itself, from the memory-mapped store, and takes its share of the
    positions. Only the images are read and decoded once, on the first pipeline stage. With
    ``--vision-parallel data`` each rank decodes the views that it encodes; else the first
    tensor-parallel rank does and sends the uint8 tiles to the others, which know their shape from
    the layout. With pipeline parallelism, all packs of a step are padded to the longest of them,
    because stages exchange tensors of one length.

    Args:
        store: the samples.
        settings: image settings.
        schedule: which samples each pack holds.
        config: the run.
        num_microbatches: microbatches of this rank in a step.
        device: where batches go.
        loss_origins: whether batches of the last pipeline stage say where their losses come from.
    """

    def __init__(
        self,
        store: SampleStore,
        settings: ImageSettings,
        schedule: Schedule,
        config: RunConfig,
        *,
        num_microbatches: int,
        device: torch.device,
        loss_origins: bool = False,
    ) -> None:
        self.settings, self.device, self.schedule = settings, device, schedule
        self._store_prefix, self._vocab_size = store.prefix, config.language.vocab_size
        self.num_microbatches = num_microbatches
        self.rank = parallel_state.get_data_parallel_rank()
        self.size = parallel_state.get_data_parallel_world_size()
        parallel = config.parallel
        self.share = share_of_rank(config)
        self._sends_tiles = (
            parallel.tensor_model_parallel_size > 1 and parallel.vision_parallel == "tensor"
        )
        self._same_length = parallel.pipeline_model_parallel_size > 1
        self._multiple = row_multiple(config)
        self._loss_origins = loss_origins and parallel_state.is_pipeline_last_stage()
        self._on_first_stage = parallel_state.is_pipeline_first_stage()
        is_sender = parallel_state.get_tensor_model_parallel_rank() == 0
        decodes = self._on_first_stage and (is_sender or not self._sends_tiles)
        self.loader = PackedDataLoader(
            store,
            settings,
            schedule,
            data_parallel_rank=self.rank,
            data_parallel_size=self.size,
            num_workers=config.data.num_workers if decodes else 0,
            with_pixels=decodes,
            pin_memory=decodes and device.type == "cuda",
            timeout_minutes=config.data.data_timeout_minutes,
            say=_say,
            exact_pixels=config.data.exact_pixels,
            pad_multiple=self._multiple,
            sequence_multiple=self.share.sequence_multiple,
            view_share=(self.share.view_rank, self.share.view_size),
        )
        self.data_seconds = 0.0
        self._batches = iter(self.loader)
        self._handed_out = 0

    @property
    def packs_per_step(self) -> int:
        """Packs of a global batch."""
        return self.num_microbatches * self.size

    @property
    def consumed_packs(self) -> int:
        """Packs that all ranks together have taken, from the start of the run."""
        return self.loader.consumed_packs

    def samples_of(self, packs: Iterable[int]) -> str:
        """The samples of some packs, as messages name them."""
        ids = sorted({int(sample) for pack in packs for sample in self.schedule.pack(pack)})
        return f"store {self._store_prefix}: samples {', '.join(map(str, ids))}"

    def resume_at(self, consumed_packs: int) -> None:
        """Go on at a position, without reading what was skipped."""
        self.loader.consumed_packs = consumed_packs
        self._batches = iter(self.loader)

    def step_rows(self) -> int:
        """Positions of the longest pack that this data-parallel rank takes in the next step."""
        first = self.consumed_packs + self.rank
        packs = (first + i * self.size for i in range(self.num_microbatches))
        multiple = self.share.sequence_multiple
        return max(padded_rows(self.schedule.pack_rows(p, multiple), self._multiple) for p in packs)

    def step(self, rows: int) -> Iterator[TensorBatch]:
        """The microbatches of the next step.

        Args:
            rows: what ``step_rows`` said.

        Raises:
            ValueError: one line naming the sample or the store, for an image or a token that the
                model cannot take.
        """
        for _ in range(self.num_microbatches):
            started = time.perf_counter()
            pack = self.consumed_packs + self.rank
            packed = next(self._batches)
            self.data_seconds += time.perf_counter() - started
            largest = int(packed.token_ids.max(initial=0))
            if largest >= self._vocab_size:
                raise ValueError(
                    f"store {self._store_prefix}: token {largest} is beyond --vocab-size "
                    f"{self._vocab_size}: preprocess again with the tokenizer of the model"
                )
            if self._loss_origins:
                packed = with_loss_origins(packed, self.schedule.pack(pack))
            if self._same_length:
                packed = pad_batch(packed, rows)
            packed = share_of_pack(
                packed,
                self.share,
                self.settings.tokens_per_view,
                pools_by_max=self.settings.pools_by_max,
            )
            yield self._send_tiles(packed.to_torch(self.device), packed.num_views)

    def _send_tiles(self, batch: TensorBatch, num_views: int) -> TensorBatch:
        """Give all tensor-parallel ranks of the first stage the tiles that one decoded."""
        if not self._on_first_stage or not self._sends_tiles:
            return batch
        tiles = batch.tiles
        if tiles is None:
            side = self.settings.tile_size
            share = dealt_views(num_views, self.share.view_rank, self.share.view_size)
            shape = (max(len(share), 1), 3, side, side)
            tiles = torch.empty(shape, dtype=torch.uint8, device=self.device)
        source = parallel_state.get_tensor_model_parallel_src_rank()
        dist.broadcast(tiles, source, group=parallel_state.get_tensor_model_parallel_group())
        return replace(batch, tiles=tiles)
