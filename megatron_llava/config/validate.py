"""Whether the settings of a run fit together, asked before anything is started or written.

Every rule raises ValueError with one line that names the flags, their numbers and what to do. The
rules are Megatron's and Megatron-core's where those have them.
"""

from __future__ import annotations

from megatron_llava.config import (
    rules_balance,
    rules_fp8,
    rules_lora,
    rules_losses,
    rules_model,
    rules_optimizer,
    rules_pipeline,
    rules_profiling,
    rules_training,
)
from megatron_llava.config.model_yaml import MAY_STAY_UNSET
from megatron_llava.config.run import RunConfig, all_fields


def validate(config: RunConfig, world_size: int) -> None:
    """Check a complete configuration.

    Args:
        config: the settings, with the model's fields filled from the checkpoint where there is one.
            ``device`` ``auto`` passes every rule about devices: resolve it first.
        world_size: ranks that were started.

    Raises:
        ValueError: the first rule that does not hold.
    """
    _check_values(config)
    _check_required(config)
    rules_training.check_batch(config, world_size)
    rules_pipeline.check_stages(config)
    rules_balance.check_balance(config)
    rules_pipeline.check_virtual_stages(config)
    rules_pipeline.check_virtual_microbatches(config, config.num_microbatches(world_size))
    rules_model.check_language(config)
    rules_model.check_context(config)
    rules_model.check_vision(config)
    rules_model.check_data_parallel(config)
    rules_model.check_precision(config)
    rules_fp8.check_fp8(config)
    rules_optimizer.check_optimizer(config)
    rules_model.check_sequence(config)
    rules_training.check_pack_cost(config)
    rules_training.check_schedule(config)
    rules_losses.check_spikes(config)
    rules_training.check_tunable_parts(config)
    rules_losses.check_losses(config)
    rules_losses.check_loss_function(config)
    rules_lora.check_lora(config)
    rules_training.check_recompute(config)
    rules_training.check_evaluation(config)
    rules_training.check_saving(config)
    rules_training.check_loading(config)
    rules_profiling.check_profiling(config, world_size)
    rules_profiling.check_wandb_flags(config)
    rules_profiling.check_memory_history(config)


def _check_values(config: RunConfig) -> None:
    for spec in all_fields().values():
        value = config.get(spec.name)
        try:
            spec.check_choice(value)
            spec.check_bounds(value)
        except ValueError as error:
            raise ValueError(f"{spec.option}: {error}") from None


def _check_required(config: RunConfig) -> None:
    for name in ("train_iters", "lr", "data_path", "seq_length"):
        if config.get(name) is None:
            spec = all_fields()[name]
            raise ValueError(f"{spec.option} is required: {spec.info.help}")
    for spec in all_fields().values():
        if spec.info.from_checkpoint == "no" or spec.name in MAY_STAY_UNSET:
            continue
        if config.get(spec.name) is None:
            raise ValueError(
                f"{spec.option} is not known: give it, or --model NAME, or start from a checkpoint "
                "whose model.yaml has it (--pretrained-checkpoint or --load), or from a Hugging "
                "Face folder (--load-hf)"
            )
