"""Traces of some steps, and the history of a GPU's memory."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class ProfilingConfig:
    """The profiler's window and the recording of memory."""

    profile: bool = flag(
        False,
        "Profile some steps: for Nsight Systems (nsys profile --capture-range=cudaProfilerApi), or "
        "with --use-pytorch-profiler",
    )
    profile_step_start: int = flag(
        10, "Steps done when profiling starts: the next one is the first profiled", minimum=0
    )
    profile_step_end: int = flag(12, "Step after which profiling ends", minimum=1)
    profile_ranks: tuple[str, ...] = flag(("0",), "Global ranks that are profiled, comma-separated")
    use_pytorch_profiler: bool = flag(
        False,
        "Write what torch's profiler sees to --tensorboard-dir, a .pt.trace.json of each rank",
    )
    record_memory_history: bool = flag(
        False,
        "Record allocations of GPU memory with their stacks, and write them when memory runs out "
        "and at the end of the run",
    )
    memory_snapshot_path: str = flag(
        "snapshot.pickle",
        "File for --record-memory-history, with the rank put before its suffix; "
        "pytorch.org/memory_viz shows it",
    )
