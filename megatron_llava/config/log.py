"""What a run tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """The log line, TensorBoard, Weights & Biases and the JSONL file."""

    log_interval: int = flag(100, "Steps between log lines", minimum=1)
    tensorboard_dir: str | None = flag(None, "Folder for TensorBoard events")
    log_file: str | None = flag(None, "JSON Lines file that gets one record per log line")
    wandb_project: str | None = flag(
        None,
        "Project at Weights & Biases that gets the numbers of the log lines; needs the package "
        "wandb. With WANDB_MODE=offline in the environment the run stays on this machine",
    )
    wandb_exp_name: str | None = flag(
        None, "Name of the run in --wandb-project", default_text="one that W&B makes up"
    )
    wandb_save_dir: str | None = flag(
        None,
        "Folder in which wandb keeps its files",
        default_text="--save, else the current folder",
    )
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
