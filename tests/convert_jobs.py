"""Jobs about converted checkpoints that tests send to the pool; see distributed_pool.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_jobs import config_at

TRAINED = 3
"""Iteration under which `logits_and_resave` saves."""


def logits_and_resave(
    root: Path, target: Path, asked: dict[str, Any], *, tensor_parallel: int, pipeline: int
) -> dict[str, torch.Tensor] | None:
    """Load a converted checkpoint over a layout, compute logits, and save it from there.

    Args:
        asked: token ids and images by name, as `verify_logits.cases` gives them.

    Returns:
        Logits [R, vocabulary] of each case, on the last rank.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    from megatron_llava.convert.verify_batch import batch_of
    from megatron_llava.models.build import build_llava_model
    from megatron_llava.parallel.checkpoint_directory import SIDE_FILES
    from megatron_llava.parallel.checkpoint_io import save_sharded
    from megatron_llava.parallel.groups import destroy_groups, initialize_groups, set_seed
    from megatron_llava.training.checkpointing import load_weights
    from megatron_llava.vision.settings import image_settings

    config = config_at(
        root,
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=pipeline,
    )
    initialize_groups(config.parallel)
    set_seed(1)
    try:
        first = parallel_state.is_pipeline_first_stage()
        last = parallel_state.is_pipeline_last_stage()
        model = build_llava_model(config, pre_process=first, post_process=last).eval()
        load_weights(str(root), "release", [model])
        found = {}
        with torch.no_grad():
            for name, (ids, images) in asked.items():
                batch = batch_of(ids, images, image_settings(config))
                if not first:
                    hidden = torch.empty(batch.num_rows, 1, model.config.hidden_size)
                    dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
                    model.set_input_tensor(hidden)
                hidden = model.decode(batch)
                if not last:
                    following = parallel_state.get_pipeline_model_parallel_next_rank()
                    dist.send(hidden.contiguous(), following)
                    continue
                logits = model.logits(hidden, torch.arange(batch.num_rows))
                gathered = gather_from_tensor_model_parallel_region(logits)
                found[name] = gathered[:, : model.vocab_size]
        save_sharded(target, TRAINED, {"model": model.sharded_state_dict(), "iteration": TRAINED})
        if dist.get_rank() == 0:
            for name in SIDE_FILES:
                copy = shutil.copytree if (root / name).is_dir() else shutil.copyfile
                copy(root / name, target / name)
        return found if dist.get_rank() == dist.get_world_size() - 1 else None
    finally:
        destroy_groups()


def import_and_judge(source: Path, root: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Convert a Hugging Face folder; what to ask, and what transformers answers."""
    from megatron_llava.convert.checkpoint import import_hf
    from megatron_llava.convert.root_files import read_root_mapping, run_config
    from megatron_llava.convert.verify_logits import cases, hf_logits
    from megatron_llava.vision.settings import image_settings

    import_hf(source, root)
    mapping = read_root_mapping(root)
    settings = image_settings(run_config(mapping, "model.yaml"))
    asked = cases(mapping, settings)
    return asked, hf_logits(source, settings, asked)


def export_and_verify(root: Path, target: Path) -> None:
    """Export a checkpoint and compare every tensor."""
    from megatron_llava.convert.checkpoint import export_hf
    from megatron_llava.convert.verify import verify

    export_hf(root, target)
    verify(root, target)


def export_and_compare_logits(root: Path, target: Path) -> float:
    """Export a checkpoint; the largest difference of a logit to transformers."""
    from megatron_llava.convert.verify_logits import verify_logits

    export_and_verify(root, target)
    return max(verify_logits(root, target).values())
