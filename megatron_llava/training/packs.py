"""The store of a run and the order of its packs, as its settings say (no Megatron-core here)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.run import RunConfig
from megatron_llava.data.merged_store import open_store
from megatron_llava.data.sample import SampleStore
from megatron_llava.data.schedule import TrainingSchedule
from megatron_llava.data.truncate import truncated
from megatron_llava.parallel.pack_cost import pack_balance


def opened_store(
    path: str, config: RunConfig, settings: ImageSettings, message: Callable[[str], None]
) -> SampleStore:
    """A store with the samples that a pack can hold, as --oversize-samples says.

    Raises:
        ValueError: one line, for a store that cannot be read, from which nothing can learn, or with
            a video of too many frames.
    """
    data = config.data
    store = open_store(path)
    if "mm_language_model" not in config.training.mm_tunable_parts and not len(store.image_sizes):
        raise ValueError(
            f"store {store.prefix}: has no images, and without them nothing learns of "
            f"--mm-tunable-parts {','.join(config.training.mm_tunable_parts)}: add "
            "mm_language_model, or give other data"
        )
    if config.vision.temporal_encoder_layers:
        _check_frames(store, config.vision.temporal_encoder_max_frames)
    if data.oversize_samples != "truncate":
        return store
    shortened = truncated(store, settings, data.seq_length, data.max_views_per_pack)
    if shortened.kept:
        message(
            f"store {store.prefix}: {len(shortened.kept)} of {len(store)} samples are longer than "
            "a pack and truncated, as --oversize-samples truncate says"
        )
    return shortened


def _check_frames(store: SampleStore, most: int) -> None:
    """Refuse a store with a video of more frames than the temporal encoder can tell apart."""
    sizes = store.image_sizes
    frames = np.where(sizes[:, 1] == 0, sizes[:, 0], 0)
    longer = np.flatnonzero(frames > most)
    if len(longer):
        sample = int(np.searchsorted(store.image_offsets, longer[0], side="right")) - 1
        raise ValueError(
            f"store {store.prefix}: sample {sample} has a video of {frames[longer[0]]} frames, "
            f"more than --temporal-encoder-max-frames {most} ({len(longer)} videos have, the "
            f"longest {frames.max()}): raise it, or preprocess with --frames-upbound {most}"
        )


def most_left_out(config: RunConfig, store: SampleStore) -> int:
    """How many samples that do not fit may be left out."""
    everything = config.data.oversize_samples == "leave_out"
    return len(store) if everything else config.data.max_bad_records


def training_schedule(
    config: RunConfig, settings: ImageSettings, store: SampleStore
) -> TrainingSchedule:
    """The packs of the run, epoch after epoch."""
    data, batch = config.data, config.training.global_batch_size
    return TrainingSchedule(
        store,
        settings,
        data.seq_length,
        seed=config.training.seed,
        window=data.packing_window,
        max_bad_records=most_left_out(config, store),
        max_views=data.max_views_per_pack,
        balance=pack_balance(config),
        modality_batch=batch if data.group_by_modality_length else None,
        drop_last=batch if data.drop_last else None,
        cache_path=data.data_cache_path,
    )


def epoch_remark(config: RunConfig, schedule: TrainingSchedule) -> str | None:
    """What --drop-last leaves of the first epoch, in words; None without the flag."""
    if not config.data.drop_last:
        return None
    batch, plan, taken = config.training.global_batch_size, schedule.plan(0), schedule.packs_of(0)
    assert batch is not None, "it is asked for with the flag"
    steps = f"the first epoch's {len(plan)} packs fill {taken // batch} global batches of {batch}"
    if taken == len(plan):
        return f"{steps}, and --drop-last leaves out none of them"
    samples = len(plan.sample_ids) - int(plan.pack_offsets[taken])
    return (
        f"{steps}; the last {len(plan) - taken} packs with {samples} samples are left out, as "
        "--drop-last says"
    )
