"""What a run tells about itself: a line per interval, JSONL, TensorBoard, W&B, a progress bar."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch
from tqdm import tqdm

from megatron_llava.data.sample_kinds import KIND_COLUMNS
from megatron_llava.observe.run_log import START, settings_digest
from megatron_llava.observe.wandb_run import WandbRun
from megatron_llava.platform.environment import run_environment
from megatron_llava.platform.gpus import TERA, published_flops
from megatron_llava.training.interval import Interval


def memory_bytes(device: torch.device) -> int:
    """Peak allocated GPU memory, or the resident memory of the process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def peak_flops(device: torch.device, given: float | None) -> float | None:
    """FLOPs per second of a rank's device: ``--peak-tflops``, else the published ones of a GPU."""
    if given is not None:
        return given * TERA
    if device.type != "cuda":
        return None
    return published_flops(torch.cuda.get_device_name(device))


class Reporter:
    """Writes the records of a run; on ranks other than 0 it does nothing.

    Args:
        active: whether this rank reports.
        train_iters: the last step, for the progress bar and the time left.
        log_file: JSONL file, appended to.
        tensorboard_dir: folder for event files.
        wandb: a run at Weights & Biases, closed with the others; None without one.
        progress_bar: show a bar where standard error is a terminal.
        ranks: of the run.
        peak_flops: of a rank's device per second, which MFU and HFU are shares of; without it they
            are not reported.
        stream: where log lines go.

    Raises:
        ValueError: one line naming the flag whose file cannot be written.
    """

    def __init__(
        self,
        *,
        active: bool,
        train_iters: int,
        log_file: str | None,
        tensorboard_dir: str | None,
        progress_bar: bool,
        wandb: WandbRun | None = None,
        ranks: int = 1,
        peak_flops: float | None = None,
        stream: TextIO = sys.stdout,
    ) -> None:
        self.active, self.train_iters, self.stream = active, train_iters, stream
        self.ranks, self.peak_flops = ranks, peak_flops
        self._file = self._board = self._bar = None
        self._wandb = wandb
        if not active:
            return
        if log_file is not None:
            with _naming(f"--log-file {log_file}"):
                Path(log_file).parent.mkdir(parents=True, exist_ok=True)
                self._file = open(log_file, "a", encoding="utf-8")  # noqa: SIM115 - see close()
                self._end_torn_line(Path(log_file))
        if tensorboard_dir is not None:
            from torch.utils.tensorboard import SummaryWriter

            with _naming(f"--tensorboard-dir {tensorboard_dir}"):
                self._board = SummaryWriter(tensorboard_dir)
        if progress_bar and sys.stderr.isatty():
            self._bar = tqdm(total=train_iters, unit="step", dynamic_ncols=True)

    def started(self, iteration: int, run_yaml: str, device: torch.device) -> None:
        """Write to the file when, where and with what settings the run starts or goes on.

        Args:
            iteration: steps already done.
            run_yaml: the settings, as they are written beside checkpoints.
        """
        if self._file is None:
            return
        record = {
            "event": START,
            "iteration": iteration,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "settings": settings_digest(run_yaml),
            "environment": run_environment(device),
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def message(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        if not self.active:
            return
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def advance_to(self, iteration: int) -> None:
        """Move the progress bar."""
        if self._bar is not None:
            self._bar.update(iteration - self._bar.n)

    def training(
        self, iteration: int, values: dict[str, float], interval: Interval, device: torch.device
    ) -> None:
        """Report one log interval.

        Args:
            values: losses, "grad norm", the learning rates and "skipped steps", in the order to be
                shown; null in the file where one is not finite.
        """
        if not self.active:
            return
        seconds = max(time.perf_counter() - interval.started, 1e-9)
        left = (self.train_iters - iteration) * seconds / max(interval.steps, 1)
        record = {
            "iteration": iteration,
            **values,
            "tokens/s": interval.tokens / seconds,
            "images/s": interval.images / seconds,
            "samples/s": interval.samples / seconds,
            **dict(zip(KIND_COLUMNS.values(), interval.kinds, strict=True)),
            "fill %": 100.0 * interval.tokens / max(interval.padded_tokens, 1),
            "data wait %": 100.0 * interval.data_seconds / seconds,
            **self._flops(interval, seconds),
            "memory GiB": memory_bytes(device) / 2**30,
            "s/step": seconds / max(interval.steps, 1),
            "eta s": left,
            **interval.details,
        }
        self._write(iteration, "train", record)
        shown = " | ".join(f"{name} {_short(value)}" for name, value in values.items())
        self.message(
            f"step {iteration}/{self.train_iters} | {shown} | "
            f"{_short(record['tokens/s'])} tokens/s | {_short(record['images/s'])} images/s | "
            f"fill {record['fill %']:.1f} % | "
            f"data wait {record['data wait %']:.1f} % | {_speed(record)} | "
            f"{record['memory GiB']:.2f} GiB | {record['s/step']:.3f} s/step | eta {_clock(left)}"
        )

    def _flops(self, interval: Interval, seconds: float) -> dict[str, float]:
        """FLOPs per second, and as shares of the peak where that is known."""
        useful = interval.useful_flops / seconds / self.ranks
        again = interval.recomputed_flops / seconds / self.ranks
        if self.peak_flops is None:
            return {"TFLOP/s/rank": useful / TERA}
        return {
            "TFLOP/s/rank": useful / TERA,
            "MFU %": 100.0 * useful / self.peak_flops,
            "HFU %": 100.0 * (useful + again) / self.peak_flops,
        }

    def validation(self, iteration: int, loss: float, tokens: int, seconds: float) -> None:
        """Report an evaluation on the held-out store."""
        if not self.active:
            return
        self._write(iteration, "valid", {"iteration": iteration, "valid loss": loss})
        self.message(
            f"step {iteration}/{self.train_iters} | valid loss {loss:.4f} | {tokens:,} supervised "
            f"tokens | {seconds:.1f} s"
        )

    def close(self) -> None:
        """Flush and close every output."""
        for output in (self._file, self._board, self._wandb, self._bar):
            if output is not None:
                output.close()

    def _end_torn_line(self, path: Path) -> None:
        """Keep what is written now apart from a line that a crash cut short."""
        if not path.is_file():  # such as a pipe
            return
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - 1, 0))
            if size and file.read(1) != b"\n":
                self._file.write("\n")

    def _write(self, iteration: int, group: str, record: dict[str, Any]) -> None:
        # JSON has no word for what is no number, and a curve no place.
        record = {name: None if _is_no_number(value) else value for name, value in record.items()}
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        curves = {
            f"{group}/{name}": value
            for name, value in record.items()
            if name != "iteration" and isinstance(value, (int, float))
        }
        if self._board is not None:
            for name, value in curves.items():
                self._board.add_scalar(name, value, iteration)
        if self._wandb is not None:
            self._wandb.log(curves, iteration)


@contextmanager
def _naming(flag: str) -> Iterator[None]:
    """Make an error of the operating system a user error that names the flag."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{flag}: cannot write there: {error.strerror}") from None


def _is_no_number(value: float | str) -> bool:
    return not isinstance(value, str) and not math.isfinite(value)


def _speed(record: dict[str, Any]) -> str:
    """FLOPs for the line."""
    speed = f"{_short(record['TFLOP/s/rank'])} TFLOP/s/rank"
    if "MFU %" not in record:
        return speed
    return f"{speed} | MFU {record['MFU %']:.1f} % | HFU {record['HFU %']:.1f} %"


def _short(value: float) -> str:
    """A number in about five characters."""
    # From 9999.5 on, four digits would be written as 1e+04.
    if value == 0 or 1e-2 <= abs(value) < 9999.5:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 1 else f"{value:.2e}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
