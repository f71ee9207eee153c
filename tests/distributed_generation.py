"""A job that answers a few prompts with a converted checkpoint, at a layout of the pool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from distributed_jobs import config_at
from tiny_model import tiny_sample

SIZES = [[(100, 80)], [], [(30, 99), (20, 20)], [(300, 50)]]


def answers(
    root: Path, *, tensor_parallel: int, sequence_parallel: bool
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Token ids and first logits [vocabulary] of each answer, two prompts to a pack."""
    from megatron_llava.inference.generate import generate
    from megatron_llava.models.build import build_llava_model
    from megatron_llava.parallel.groups import destroy_groups, initialize_groups, set_seed
    from megatron_llava.training.checkpointing import load_weights
    from megatron_llava.vision.settings import image_settings

    config = config_at(
        root,
        tensor_model_parallel_size=tensor_parallel,
        sequence_parallel=sequence_parallel,
    )
    initialize_groups(config.parallel)
    set_seed(1)
    try:
        model = build_llava_model(config)
        load_weights(str(root), "release", [model])
        prompts = [tiny_sample(sizes, 7 + n, n) for n, sizes in enumerate(SIZES)]
        found = generate(
            model,
            prompts,
            image_settings(config),
            max_new_tokens=6,
            stop_token_ids=[],
            rows_per_pack=200,
        )
        return [(answer.token_ids, answer.prompt_logits.numpy()) for answer in found]
    finally:
        destroy_groups()
