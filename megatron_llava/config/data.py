"""Which samples are read and how they are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_llava.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The stores, the packs and the loader."""

    data_path: str | None = flag(None, "Prefix of the training store")
    valid_data_path: str | None = flag(
        None, "Prefix of the validation store; needs --eval-interval"
    )
    seq_length: int | None = flag(None, "Tokens in one pack, images expanded", minimum=1)
    num_workers: int = flag(2, "Loader processes per rank; 0 loads in the trainer", minimum=0)
    data_timeout_minutes: float = flag(
        10.0, "A batch that loader processes take longer for ends the run", above=0
    )
    exact_pixels: bool = flag(
        True,
        "Decode every image in full; off, a JPEG larger than its views is decoded at 1/2, 1/4 or "
        "1/8 of its size, which is faster and changes pixels slightly",
    )
    data_cache_path: str | None = flag(
        None, "Folder for packing plans", default_text="beside the store"
    )
    max_bad_records: int = flag(
        0, "Samples that may be skipped as unusable before the run stops", minimum=0
    )
    oversize_samples: Literal["refuse", "leave_out", "truncate"] = flag(
        "refuse",
        "Samples longer than a pack: refuse more than --max-bad-records of them, leave_out all of "
        "them, or truncate them (an image is never cut)",
    )
    packing_window: int = flag(
        0, "Samples packed together; 0 for all of an epoch, which fills packs best", minimum=0
    )
    max_views_per_pack: int | None = flag(
        None, "Image views in one pack, beside its --seq-length tokens", minimum=1
    )
    balance_packs: int = flag(
        128,
        "Packs are put in runs of so many that cost about the same, so that data-parallel ranks "
        "(a number that divides it) wait little for each other; 0 leaves them as they are",
        minimum=0,
    )
    group_by_modality_length: bool = flag(
        False,
        "Global batches of text alone, or of samples with images or videos, as LLaVA's flag of "
        "this name; needs --global-batch-size",
    )
    drop_last: bool = flag(
        False,
        "Leave out the last packs of an epoch that fill no global batch, so that every step is of "
        "one epoch; needs --global-batch-size",
    )
    pack_cost: tuple[float, ...] | None = flag(
        None,
        "What a row, a pair of rows of a sample and a view cost, three integers, as "
        "benchmarks/calibrate_cost.py prints them",
        default_text="by FLOPs",
    )
