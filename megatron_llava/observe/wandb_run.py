"""A run at Weights & Biases, an optional package; with WANDB_MODE=offline it stays in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_llava.config.run import RunConfig, all_fields


def check_wandb(config: RunConfig) -> None:
    """Raise ValueError where --wandb-project is given and the package is not installed."""
    project = config.logging.wandb_project
    if project is not None and find_spec("wandb") is None:
        raise ValueError(
            f"--wandb-project {project}: the package is not installed; pip install "
            "'megatron-llava[wandb]', or drop the flag"
        )


class WandbRun:
    """A run that numbers go to by step; --wandb-project must be given.

    Args:
        config: every setting is written beside the numbers.

    Raises:
        ValueError: one line, where W&B takes no run: no login, no connection.
    """

    def __init__(self, config: RunConfig) -> None:
        import wandb

        logging = config.logging
        folder = Path(logging.wandb_save_dir or config.checkpoint.save or ".")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=logging.wandb_project,
                name=logging.wandb_exp_name,
                dir=str(folder),
                config={name: config.get(name) for name in all_fields()},
            )
        except wandb.errors.Error as error:
            said = " ".join(str(error).split())
            raise ValueError(
                f"--wandb-project {logging.wandb_project}: {said}; log in with 'wandb login', or "
                "set WANDB_MODE=offline and send the run later with 'wandb sync'"
            ) from None

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Add numbers of a step, which may have some already."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run and wait until it is written."""
        self._run.finish()
