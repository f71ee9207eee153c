"""Where checkpoints lie: Megatron's directory protocol.

A root holds ``latest_checkpointed_iteration.txt`` (an iteration number, or ``release`` for
converted weights) and one folder per checkpoint, ``iter_0000100/`` or ``release/``. Beside them lie
the architecture (``model.yaml``), tensors that are never trained (``passthrough.safetensors``) and
the Hugging Face files that travel along (``hf/``).
"""

from __future__ import annotations

from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
MODEL_YAML = "model.yaml"
SIDE_FILES = (MODEL_YAML, "passthrough.safetensors", "hf")

Iteration = int | str
"""An iteration number, or ``RELEASE``."""


class CheckpointError(ValueError):
    """A checkpoint could not be written or read; the message is one line for the user."""


def iteration_directory(root: str | Path, iteration: Iteration) -> Path:
    """Folder of one checkpoint under ``root``."""
    name = RELEASE if iteration == RELEASE else f"iter_{int(iteration):07d}"
    return Path(root) / name


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
    if not iteration_directory(root, iteration).is_dir():
        raise CheckpointError(f"{tracker} names {text}, but that checkpoint's folder is missing")
    return iteration
