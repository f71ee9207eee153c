"""The weights of a whole model, from a checkpoint of ours or a Hugging Face folder."""

from __future__ import annotations

from megatron_llava.config.run import RunConfig
from megatron_llava.convert.hf_start import load_hf_weights
from megatron_llava.models.feature_attention import CROSS_IMAGE_WEIGHTS
from megatron_llava.models.image_rows import OPTIONAL_ROWS
from megatron_llava.models.llava import LlavaModel
from megatron_llava.models.temporal_encoder import temporal_encoder_weights
from megatron_llava.parallel.checkpoint_directory import HF, Iteration
from megatron_llava.training.checkpointing import load_weights


def load_whole_weights(
    root: str,
    iteration: Iteration,
    config: RunConfig,
    models: list[LlavaModel],
    *,
    fully_parallel: bool = False,
) -> list[str]:
    """Load what a run starts from, or what its adapters stand beside, at any layout.

    Args:
        root: a root of checkpoints, or where ``iteration`` is HF a Hugging Face folder.
        config: of the models.

    Returns:
        Parameters that such weights may lack and do: they keep their values.

    Raises:
        ValueError: one line: see ``load_hf_weights`` and ``load_weights``.
    """
    layers = config.vision.temporal_encoder_layers
    may_lack = OPTIONAL_ROWS + CROSS_IMAGE_WEIGHTS + temporal_encoder_weights(layers)
    if iteration == HF:
        return load_hf_weights(root, models, may_lack=may_lack)
    return load_weights(root, iteration, models, fully_parallel=fully_parallel, may_lack=may_lack)
