"""What ranks of the pool run to test emulated FP8."""

from __future__ import annotations

from typing import Any

import torch


def train_in_fp8(arguments: list[str]) -> dict[str, Any]:
    """Run the trainer with a command line.

    Returns:
        The losses, this rank's parameters, and the scales and histories of its linears by name,
        with layers counted over all stages.
    """
    from distributed_jobs import Recorder

    from megatron_llava.config.cli import parse_args
    from megatron_llava.models.fp8_layers import Fp8TransformerLayer
    from megatron_llava.parallel.model_shards import model_shards
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer

    fp8 = ["--bf16", "--fp8-format", "hybrid", "--fp8-emulation", "--log-interval", "1"]
    config = prepare(parse_args([*arguments, *fp8]))
    recorder = Recorder()
    scales = {}
    with open_trainer(config, torch.device("cpu"), recorder) as trainer:
        trainer.run()
        for model in trainer.models:
            for layer in model.modules():
                if isinstance(layer, Fp8TransformerLayer):
                    for place, linear in enumerate(layer.fp8_linears()):
                        state = linear.get_extra_state()
                        found = torch.cat((state["scales"][None], state["amax_history"]))
                        scales[layer.layer_number, place] = found.tolist()
        shards = [(shard.key, shard.array.tobytes()) for shard in model_shards(trainer.models)]
    losses = [step["lm loss"] for step in recorder.steps]
    return {"losses": losses, "shards": shards, "scales": scales}
