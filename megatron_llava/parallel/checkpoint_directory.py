"""Where checkpoints lie: Megatron's directory protocol.

A root holds ``latest_checkpointed_iteration.txt`` (an iteration number, or ``release`` for
converted weights) and one folder per checkpoint, ``iter_0000100/`` or ``release/``. Beside them lie
the architecture (``model.yaml``), tensors that are never trained (``passthrough.safetensors``), the
Hugging Face files that travel along (``hf/``), and of checkpoints that hold adapters instead of the
weights that they adapt, what kind they are (``lora.json``, see ``adapter_record``).

A checkpoint grows under a name of its own, ``iter_0000100.partial-<word>``. One that is written
again stands aside as ``iter_0000100.replaced`` until its successor has its name, so that at any
moment one of the two is there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
HF = "hf"
"""In an iteration's place: weights that are read from a Hugging Face folder as they are."""
MODEL_YAML = "model.yaml"
RUN_YAML = "run.yaml"
ADAPTER_JSON = "lora.json"
SIDE_FILES = (MODEL_YAML, "passthrough.safetensors", "hf")

Iteration = int | str
"""An iteration number, or ``RELEASE``; a run may also start from ``HF``."""


class CheckpointError(ValueError):
    """A checkpoint could not be written or read; the message is one line for the user."""


def is_hf_folder(root: str | Path) -> bool:
    """Whether a folder is of Hugging Face, not a root of checkpoints."""
    return not (Path(root) / TRACKER).is_file() and (Path(root) / "config.json").is_file()


def iteration_directory(root: str | Path, iteration: Iteration) -> Path:
    """Folder of one checkpoint under ``root``."""
    name = RELEASE if iteration == RELEASE else f"iter_{int(iteration):07d}"
    return Path(root) / name


def partial_directory(root: str | Path, iteration: Iteration, word: str) -> Path:
    """Folder that a checkpoint is written in before it is complete."""
    final = iteration_directory(root, iteration)
    return final.with_name(f"{final.name}.partial-{word}")


def find_checkpoint(root: str | Path, iteration: Iteration) -> Path | None:
    """Folder that holds a complete checkpoint; None where there is none."""
    final = iteration_directory(root, iteration)
    return next((folder for folder in (final, _aside(final)) if folder.is_dir()), None)


def publish(root: str | Path, iteration: Iteration, partial: Path) -> None:
    """Give a complete checkpoint its name, then point the tracker at it, each atomically."""
    final, tracker = iteration_directory(root, iteration), Path(root) / TRACKER
    if final.exists():
        final.rename(_aside(final))
    partial.rename(final)
    shutil.rmtree(_aside(final), ignore_errors=True)
    written = tracker.with_name(tracker.name + ".partial")
    written.write_text(str(iteration))
    os.replace(written, tracker)


def remove_oldest(
    root: str | Path,
    newest: int,
    keep: int,
    spared: Iteration | None = None,
    *,
    retain_every: int | None = None,
) -> list[str]:
    """Remove checkpoints of a run but the newest, once the newest is complete and published.

    What is counted are the folders of iterations up to ``newest``: later ones, which a run leaves
    behind that went back with ``--ckpt-step``, and ``release`` are left alone. A folder gets the
    name of an incomplete checkpoint before its files go, so that none is found half removed. One
    that cannot be renamed stays, to be tried again after the next save.

    Args:
        root: what --save names.
        newest: the iteration that was just published; never removed.
        keep: how many stay, ``newest`` included; at least 1.
        spared: never removed, and stays in addition; None where there is none.
        retain_every: multiples of this are not removed either, and stay in addition.

    Returns:
        Names of the removed folders, oldest first.
    """
    assert keep >= 1, keep
    numbers = [re.fullmatch(r"iter_(\d+)", folder.name) for folder in Path(root).glob("iter_*")]
    held = sorted(int(match[1]) for match in numbers if match and int(match[1]) <= newest)
    removed = []
    for iteration in held[:-keep]:
        folder = iteration_directory(root, iteration)
        if iteration == spared or (retain_every is not None and iteration % retain_every == 0):
            continue
        going = partial_directory(root, iteration, "removed")
        with contextlib.suppress(OSError):
            folder.rename(going)
            removed.append(folder.name)
            shutil.rmtree(going, ignore_errors=True)
    return removed


def remove_leftovers(root: str | Path) -> None:
    """Remove what saves left behind that did not end; none may be under way."""
    for folder in Path(root).glob("*"):
        name, _, kind = folder.name.partition(".")
        if not re.fullmatch(rf"iter_\d+|{RELEASE}", name):
            continue
        has_successor = kind == "replaced" and folder.with_name(name).exists()
        if kind.startswith("partial") or has_successor:
            shutil.rmtree(folder, ignore_errors=True)
        elif kind == "replaced":
            with contextlib.suppress(OSError):  # it is found under this name as well
                folder.rename(folder.with_name(name))


def _aside(final: Path) -> Path:
    return final.with_name(final.name + ".replaced")


def latest_iteration(root: str | Path) -> Iteration | None:
    """What the tracker of ``root`` names; None where there is no tracker.

    Raises:
        CheckpointError: the tracker is neither a number nor ``release``, or names no folder.
    """
    tracker = Path(root) / TRACKER
    if not tracker.is_file():
        return None
    text = tracker.read_text().strip()
    if text != RELEASE and not text.isdigit():
        raise CheckpointError(f"{tracker}: expected an iteration number or '{RELEASE}': {text!r}")
    iteration: Iteration = RELEASE if text == RELEASE else int(text)
    if find_checkpoint(root, iteration) is None:
        raise CheckpointError(f"{tracker} names {text}, but that checkpoint's folder is missing")
    return iteration
