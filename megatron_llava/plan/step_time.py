"""The time of one optimizer step, predicted from published rates. Nothing of it is measured.

Products run at a stated share of the peak, and what ranks send each other at a stated share of the
link between them, one after the other; only data-parallel sums that overlap the backward cost
nothing. A pipeline of P stages with m microbatches and v virtual stages idles for (P - 1) / (m v)
of its work (Narayanan et al., arXiv:2104.04473), and runs at the pace of its slowest stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.run import RunConfig
from megatron_llava.observe.communication import communication
from megatron_llava.observe.microbatch_sizes import MicrobatchSizes
from megatron_llava.observe.traffic_kinds import DATA
from megatron_llava.parallel.step_flops import StepFlops
from megatron_llava.plan.assumptions import LINK_UTILISATION, UTILISATION
from megatron_llava.plan.pack_load import share_of_pack
from megatron_llava.plan.workload import Workload
from megatron_llava.platform.gpus import Gpu


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds."""

    compute: float
    """Of the slowest stage."""

    bubble: float
    communication: float

    @property
    def total(self) -> float:
        return self.compute + self.bubble + self.communication


def step_time(
    config: RunConfig,
    world_size: int,
    flops: StepFlops,
    workload: Workload,
    gpu: Gpu,
) -> StepTime:
    """Of a step with those FLOPs on so many GPUs of a kind."""
    parallel = config.parallel
    stages = parallel.pipeline_model_parallel_size
    microbatches = config.num_microbatches(world_size)
    ranks = world_size // stages
    compute = flops.slowest_stage / (ranks * gpu.flops * UTILISATION)
    bubble = compute * (stages - 1) / (microbatches * (config.virtual_stages or 1))
    sent = _bytes_sent(config, world_size, workload, microbatches)
    return StepTime(
        compute=compute, bubble=bubble, communication=sent / (gpu.link * LINK_UTILISATION)
    )


def _bytes_sent(config: RunConfig, world_size: int, workload: Workload, microbatches: int) -> int:
    """What the first stage's ranks wait for."""
    parallel = config.parallel
    if parallel.context_parallel_size > 1 and parallel.context_exchange == "p2p":
        # Keys and values travel while attention runs.
        config = config.with_values({"cp_comm_type": "a2a"}, "default")
    if config.lora.adapts:
        # What they send is as narrow as their rank.
        parts = [p for p in config.training.mm_tunable_parts if p != "mm_language_model"]
        without = {"lora_rank": 0, "mm_tunable_parts": tuple(parts)}
        config = config.with_values(without, "default")
    load = share_of_pack(config, workload.largest)
    tile = 3 * (config.vision.vision_image_size or 0) ** 2
    sizes = MicrobatchSizes(
        rows=load.rows,
        text_tokens=load.text_tokens,
        loss_rows=load.loss_rows,
        views=load.views,
        tile_bytes=load.views * tile,
        features=load.features,
        frames=load.frames,
        samples=load.samples,
    )
    sent = communication(config, world_size, [sizes] * microbatches)
    hidden = (DATA,) if parallel.overlap_grad_reduce else ()
    return sum(count for (who, _), count in sent.items() if who not in hidden)
