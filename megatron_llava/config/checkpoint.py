"""What is read at the start, and written during the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_llava.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints: where, when and which of their contents."""

    save: str | None = flag(None, "Folder to write checkpoints to; needs --save-interval")
    load: str | None = flag(
        None, "Folder of the run to resume: weights, optimizer, random states and step"
    )
    pretrained_checkpoint: str | None = flag(
        None,
        "Folder of the weights to start from at step 0; not read where --load holds a checkpoint",
    )
    load_hf: str | None = flag(
        None,
        "Hugging Face folder of a LLaVA model to start from at step 0, read as it is; not read "
        "where --load holds a checkpoint",
    )
    model: str | None = flag(
        None,
        "Published model whose sizes and image settings hold where no flag gives others, such as "
        "llava-next-vicuna-7b; a checkpoint has to be of that model",
    )
    save_interval: int | None = flag(None, "Steps between checkpoints", minimum=1)
    save_total_limit: int | None = flag(
        None,
        "Checkpoints to keep in --save: the oldest are removed when a new one is complete, but "
        "never the one that the run started from",
        minimum=1,
        default_text="all",
    )
    save_retain_interval: int | None = flag(
        None,
        "Checkpoints of multiples of this step are never removed by --save-total-limit, and stay "
        "beside those that it keeps",
        minimum=1,
        default_text="none",
    )
    no_save_optim: bool = flag(False, "Write no optimizer state")
    no_load_optim: bool = flag(False, "Read no optimizer state from --load")
    no_load_rng: bool = flag(False, "Read no random states from --load")
    finetune: bool = flag(
        False, "Take only the weights of --load and start again at step 0 of the data"
    )
    ckpt_step: int | None = flag(
        None, "Step of --load to read", minimum=0, default_text="the latest"
    )
    exit_on_missing_checkpoint: bool = flag(
        False, "Stop where --load holds no checkpoint, instead of starting at step 0"
    )
    dist_ckpt_optim_fully_reshardable: bool = flag(
        False,
        "Save the distributed optimizer so that it resumes at any layout, "
        "not only at another data-parallel size; gathers it while saving",
    )
    async_save: bool = flag(
        False,
        "Write checkpoints from child processes while training goes on; a second save waits for "
        "the first, and the end of the run for the last",
    )
    no_ckpt_fully_parallel_save: bool = flag(
        False,
        "Let only the first data-parallel rank write what all of them hold, "
        "instead of sharing the work among them",
    )
    ckpt_fully_parallel_load: bool = flag(
        False,
        "Read each part of a checkpoint once among the data-parallel ranks, which send it to each "
        "other, instead of reading it on each",
    )
    ckpt_format: Literal["torch_dist"] = flag(
        "torch_dist", "Format of checkpoints; they load at any parallel layout"
    )

    @property
    def starting_flag(self) -> tuple[str, str] | None:
        """The flag that names the weights to start from at step 0, and the folder."""
        if self.load_hf is not None:
            return "--load-hf", self.load_hf
        if self.pretrained_checkpoint is not None:
            return "--pretrained-checkpoint", self.pretrained_checkpoint
        return None
