"""One layout of a run on so many GPUs: whether it fits, and how fast it is predicted to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from megatron_llava.config.run import RunConfig
from megatron_llava.data.pack_sizes import PackSizes
from megatron_llava.parallel.pipeline_cost import balanced
from megatron_llava.parallel.step_flops import StepFlops, step_flops
from megatron_llava.parallel.trained import trained
from megatron_llava.plan.assumptions import RESERVE
from megatron_llava.plan.memory import RankMemory, rank_memory
from megatron_llava.plan.pack_load import share_of_pack
from megatron_llava.plan.step_time import StepTime, step_time
from megatron_llava.plan.workload import Workload
from megatron_llava.platform.gpus import Gpu


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The GPUs that a run is planned for."""

    gpus: int
    memory: int
    """Bytes of each."""

    kind: Gpu | None
    """None where only the memory is known; then no time is predicted."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A configuration on a machine."""

    config: RunConfig
    machine: Machine
    stages: tuple[RankMemory, ...]
    """Memory of the ranks of each pipeline stage."""

    flops: StepFlops
    time: StepTime | None

    @property
    def most(self) -> int:
        """Bytes of the rank that needs the most, the reserve included."""
        return max(stage.total for stage in self.stages) + RESERVE

    @property
    def fits(self) -> bool:
        return self.most <= self.machine.memory

    @property
    def cost(self) -> tuple[float, int]:
        """Layouts in order of this are best first: time, or work where that is not known, then
        memory."""
        work = self.time.total if self.time else float(self.flops.useful + self.flops.recomputed)
        return work, self.most


WorkloadOf = Callable[[RunConfig], Workload]


def plan_layout(config: RunConfig, machine: Machine, workload_of: WorkloadOf) -> Layout:
    """Plan a configuration.

    Args:
        config: a configuration that ``validate`` accepts for so many ranks.
        machine: the GPUs.
        workload_of: what packs hold, which depends on their length.

    Raises:
        ValueError: packs that cannot be.
    """
    learning, workload, placed = trained(config), workload_of(config), config
    if config.parallel.pipeline_balance == "auto":
        placed, _ = balanced(config, workload.sizes)
    load = share_of_pack(config, workload.largest)
    stages = tuple(
        rank_memory(placed, machine.gpus, load, learning, stage)
        for stage in range(config.parallel.pipeline_model_parallel_size)
    )
    sizes = _of_step(workload.sizes, config.global_batch_size(machine.gpus))
    flops = step_flops(placed, sizes, learning)
    time = None
    if machine.kind is not None:
        time = step_time(placed, machine.gpus, flops, workload, machine.kind)
    return Layout(
        config=config,
        machine=machine,
        stages=stages,
        flops=flops,
        time=time,
    )


def _of_step(sizes: PackSizes, packs: int) -> PackSizes:
    """What so many packs hold, by the average of some."""

    def scaled(number: int) -> int:
        return round(number * packs / sizes.packs)

    return PackSizes(**{name: scaled(number) for name, number in asdict(sizes).items()})
