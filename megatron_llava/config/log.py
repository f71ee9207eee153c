"""What a run tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """The log line, TensorBoard and the JSONL file."""

    log_interval: int = flag(100, "Steps between log lines", minimum=1)
    tensorboard_dir: str | None = flag(None, "Folder for TensorBoard events")
    log_file: str | None = flag(None, "JSON Lines file that gets one record per log line")
    log_straggler: bool = flag(
        False,
        "Say at each log line which rank is slowest, and the seconds of a step that ranks spend on "
        "data, compute and communication",
    )
    timing_log_level: int = flag(
        0,
        "Log shares of the time: 1 of data, compute, communication and optimizer; 2 also of the "
        "vision tower, projector and language model",
        minimum=0,
        below=3,
    )
    peak_tflops: float | None = flag(
        None,
        "10^12 dense bfloat16 FLOPs per second that the device of a rank has at its peak: what MFU "
        "and HFU are shares of",
        above=0,
        default_text="NVIDIA's number for the GPUs that tools/plan.py knows, none on CPU",
    )
    no_progress_bar: bool = flag(False, "Show no progress bar")
