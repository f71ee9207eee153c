"""What the packs of a planned run hold, from its store (which Megatron-core reads)."""

from __future__ import annotations

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.data.pack_sizes import PackSizes
from megatron_llava.data.sampled_packs import pack_sizes, sampled_packs
from megatron_llava.plan.pack_load import PackLoad
from megatron_llava.plan.workload import Workload
from megatron_llava.training.packs import opened_store, training_schedule
from megatron_llava.vision.settings import image_settings


def workload_of_store(config: RunConfig, path: str) -> Workload:
    """Packs as the run will plan them, some of them counted.

    Raises:
        ValueError: there is no store, or a sample that does not fit.
    """
    settings = image_settings(config)
    store = opened_store(path, config, settings, print)
    schedule = training_schedule(config, settings, store)
    packs = list(sampled_packs(store, settings, schedule))
    largest = PackLoad(
        rows=known(config.data.seq_length),
        loss_rows=max(max(len(pack.loss_rows) for pack in packs), 1),
        text_tokens=max(len(pack.token_ids) for pack in packs),
        views=max(max(pack.num_views for pack in packs), 1),
        features=0,
        frames=max(PackSizes.of(pack).frames for pack in packs),
        samples=max(pack.num_samples for pack in packs),
        maxima=max(0 if pack.max_taps is None else len(pack.max_taps) for pack in packs),
    )
    samples = sum(pack.num_samples for pack in packs) / len(packs)
    taken = schedule.packs_of(0)
    return Workload(
        largest=largest,
        sizes=pack_sizes(store, settings, schedule),
        samples_per_pack=samples,
        samples=int(schedule.plan(0).pack_offsets[taken]),
        packs=taken,
        said=f"{len(packs)} packs of {path}, of {samples:.1f} samples on average",
    )
