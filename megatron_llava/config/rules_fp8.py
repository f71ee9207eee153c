"""Rules of ``validate`` about FP8."""

from __future__ import annotations

from megatron_llava.config.parallel import PrecisionConfig
from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig

_DELAYED_ONLY = ("fp8_margin", "fp8_amax_history_len", "fp8_amax_compute_algo")
_LAYERS = ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")


def check_fp8(config: RunConfig) -> None:
    """FP8 has an implementation on the device, and every flag about it something to act on."""
    parallel, precision = config.parallel, config.precision
    if precision.fp8_format is None:
        _check_unused(precision)
        return
    fp8 = f"--fp8-format {precision.fp8_format}"
    if precision.fp8_emulation:
        if parallel.transformer_impl != "local":
            raise ValueError(
                f"--fp8-emulation is of --transformer-impl local, not {parallel.transformer_impl}, "
                "which has FP8 itself: drop one"
            )
        if precision.fp8_recipe == "blockwise":
            raise ValueError(
                "--fp8-emulation has no --fp8-recipe blockwise: give delayed or tensorwise"
            )
    elif parallel.device == "cpu":
        raise ValueError(
            f"{fp8} needs a GPU, and --device is cpu: add --fp8-emulation, drop it, or run on "
            "--device cuda"
        )
    elif parallel.transformer_impl != "transformer_engine":
        raise ValueError(
            f"{fp8} needs --transformer-impl transformer_engine, not {parallel.transformer_impl}: "
            "give it, or add --fp8-emulation"
        )
    if not precision.bf16:
        raise ValueError(f"{fp8} needs --bf16: add it")
    if parallel.device == "cuda":
        _check_sizes(config, fp8)
    _check_adapters(config, fp8)
    _check_delayed(precision)
    _check_layers(config)


def _check_sizes(config: RunConfig, fp8: str) -> None:
    """Both sides of every product on a GPU are multiples of 16; what is gathered in blocks, of 128.

    Source: Transformer Engine's assert_dim_for_fp8_exec and Float8BlockQuantizer.is_quantizable.
    """
    language, parallel = config.language, config.parallel
    tensor, hidden = parallel.tensor_model_parallel_size, known(language.hidden_size)
    heads = known(language.num_attention_heads)
    channels = language.kv_channels or hidden // heads
    groups = language.num_query_groups or heads
    sizes = {
        "--hidden-size": hidden,
        "--ffn-hidden-size": known(language.ffn_hidden_size) // tensor,
        "the queries": heads * channels // tensor,
        "queries, keys and values": (heads + 2 * groups) * channels // tensor,
    }
    for name, size in sizes.items():
        if size % 16:
            raise ValueError(
                f"{fp8} needs sizes that are multiples of 16 on a rank, and {name} have {size} of "
                f"--tensor-model-parallel-size {tensor}: give another layout, or drop it"
            )
    gathered = config.precision.fp8_recipe == "blockwise" and parallel.sequence_parallel
    if gathered and tensor > 1 and hidden % 128:
        raise ValueError(
            f"--fp8-recipe blockwise with --sequence-parallel needs a multiple of 128, and "
            f"--hidden-size is {hidden}: give tensorwise or delayed"
        )


def _check_adapters(config: RunConfig, fp8: str) -> None:
    """Transformer Engine's linears are refused with adapters already."""
    lora = config.lora
    if not lora.adapts:
        return
    if lora.load_in_4bit:
        raise ValueError(
            f"{fp8} with --load-in-4bit: frozen weights are rounded one way or the other; drop one"
        )
    if config.precision.fp8_recipe == "delayed":
        raise ValueError(
            f"{fp8} with --lora-rank {lora.lora_rank}: a checkpoint of adapters has no place for "
            "the scales of --fp8-recipe delayed; give --fp8-recipe tensorwise, or drop one"
        )


def _check_unused(precision: PrecisionConfig) -> None:
    if precision.fp8_recipe != "delayed":
        raise ValueError(
            f"--fp8-recipe {precision.fp8_recipe} needs --fp8-format: add it, or drop the flag"
        )
    for name in ("fp8_emulation", "first_last_layers_bf16"):
        if getattr(precision, name):
            raise ValueError(f"{_option(name)} needs --fp8-format: add it, or drop the flag")
    for name in (*_DELAYED_ONLY, *_LAYERS):
        if _differs(precision, name):
            raise ValueError(
                f"{_option(name)} {getattr(precision, name)} needs --fp8-format: add it, or drop "
                "the flag"
            )


def _check_delayed(precision: PrecisionConfig) -> None:
    if precision.fp8_recipe == "delayed":
        return
    for name in _DELAYED_ONLY:
        if _differs(precision, name):
            raise ValueError(
                f"{_option(name)} {getattr(precision, name)} is of --fp8-recipe delayed, not "
                f"{precision.fp8_recipe}: drop it"
            )


def _check_layers(config: RunConfig) -> None:
    """Layers that stay in bfloat16 leave others, by the rules of core."""
    precision = config.precision
    if not precision.first_last_layers_bf16:
        for name in _LAYERS:
            if _differs(precision, name):
                raise ValueError(
                    f"{_option(name)} {getattr(precision, name)} needs --first-last-layers-bf16: "
                    "add it, or drop the flag"
                )
        return
    if precision.fp8_recipe == "delayed" and not precision.fp8_emulation:
        raise ValueError(
            "--first-last-layers-bf16 with Transformer Engine needs --fp8-recipe tensorwise or "
            "blockwise, not delayed: core changes formats between layers for those only"
        )
    layers = known(config.language.num_layers)
    stages = config.parallel.pipeline_model_parallel_size
    for name in _LAYERS:
        if getattr(precision, name) > layers // stages:
            raise ValueError(
                f"{_option(name)} {getattr(precision, name)} is more than the {layers // stages} "
                f"layers of a stage (--num-layers {layers} over --pipeline-model-parallel-size "
                f"{stages}): give less"
            )
    start, end = precision.num_layers_at_start_in_bf16, precision.num_layers_at_end_in_bf16
    if start + end >= layers:
        raise ValueError(
            f"--num-layers-at-start-in-bf16 {start} and --num-layers-at-end-in-bf16 {end} leave no "
            f"layer of --num-layers {layers} for --fp8-format: give less"
        )


def _differs(precision: PrecisionConfig, name: str) -> bool:
    return bool(getattr(precision, name) != getattr(PrecisionConfig(), name))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
