"""Rules of ``validate`` about adapters."""

from __future__ import annotations

from megatron_llava.config.lora import TARGET_MODULES
from megatron_llava.config.run import RunConfig, all_fields


def check_lora(config: RunConfig) -> None:
    """Adapters have known targets, an implementation, and weights to stand beside."""
    lora = config.lora
    _check_four_bit(config)
    if not lora.adapts:
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
            if config.asks_for(name):
                raise ValueError(
                    f"{all_fields()[name].option} is about adapters, and --lora-rank is 0: give a "
                    "--lora-rank, or drop the flag"
                )
        return
    rank, names = f"--lora-rank {lora.lora_rank}", ", ".join(TARGET_MODULES)
    targets = lora.lora_target_modules
    if not targets:
        raise ValueError(f"--lora-target-modules is empty: name at least one of {names}")
    for target in targets:
        if target not in TARGET_MODULES:
            raise ValueError(f"--lora-target-modules: {target!r} is not one of {names}")
        if targets.count(target) > 1:
            raise ValueError(
                f"--lora-target-modules names {target} {targets.count(target)} times: once"
            )
    if config.parallel.transformer_impl != "local":
        raise ValueError(
            f"{rank} needs --transformer-impl local, not {config.parallel.transformer_impl}: its "
            "linears contain the norms before them"
        )
    parts = config.training.mm_tunable_parts
    if "mm_language_model" not in parts:
        raise ValueError(
            f"{rank} trains adapters of mm_language_model, which is not in --mm-tunable-parts "
            f"{','.join(parts)}: add it, or drop --lora-rank"
        )
    checkpoint = config.checkpoint
    for option, folder in (("--save", checkpoint.save), ("--load", checkpoint.load)):
        if folder is not None and checkpoint.starting_flag is None:
            raise ValueError(
                f"{rank} with {option} {folder}: adapters are saved without the weights that they "
                "adapt; name those with --pretrained-checkpoint or --load-hf"
            )


def _check_four_bit(config: RunConfig) -> None:
    lora = config.lora
    if lora.load_in_4bit and not lora.adapts:
        raise ValueError(
            "--load-in-4bit is about the frozen weights beside adapters, and --lora-rank is 0: "
            "give a --lora-rank, or drop the flag"
        )
    if lora.load_in_4bit:
        return
    for name in ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant"):
        if config.asks_for(name):
            raise ValueError(
                f"{all_fields()[name].option} is about --load-in-4bit, which is not given: add it, "
                "or drop the flag"
            )
