"""Rules of ``validate`` about the model and the ranks that hold it."""

from __future__ import annotations

from megatron_llava.config.projector import parse_projector_type
from megatron_llava.config.run import RunConfig, all_fields
from megatron_llava.config.towers import HF_TOWERS


def check_language(config: RunConfig) -> None:
    """Heads and widths of the language model divide among the tensor-parallel ranks."""
    language = config.language
    tensor = config.parallel.tensor_model_parallel_size
    heads = known(language.num_attention_heads)
    groups = known(language.query_groups)
    tensor_flag = "--tensor-model-parallel-size"
    check_divisible("--num-attention-heads", heads, "--num-query-groups", groups)
    if language.kv_channels is None:
        check_divisible(
            "--hidden-size", known(language.hidden_size), "--num-attention-heads", heads
        )
    check_divisible("--num-attention-heads", heads, tensor_flag, tensor)
    if groups % tensor != 0 and tensor % groups != 0:
        raise ValueError(
            f"--num-query-groups {groups} is neither a multiple nor a divisor of {tensor_flag} "
            f"{tensor}: give a {tensor_flag} that is"
        )
    check_divisible("--ffn-hidden-size", known(language.ffn_hidden_size), tensor_flag, tensor)
    width = known(language.head_width)
    if width % 2 != 0:
        # Rotary embeddings turn pairs of channels.
        made = "" if language.kv_channels else " (--hidden-size over --num-attention-heads)"
        raise ValueError(f"--kv-channels {width}{made} is odd: give an even width of a head")


def check_context(config: RunConfig) -> None:
    """Context parallelism has heads to exchange, and an implementation."""
    parallel = config.parallel
    context, impl = parallel.context_parallel_size, parallel.transformer_impl
    if context == 1:
        if parallel.cp_comm_type is not None:
            raise ValueError(
                f"--cp-comm-type {parallel.cp_comm_type} says how context-parallel ranks meet, and "
                "--context-parallel-size is 1: drop it"
            )
        return
    if parallel.context_exchange == "p2p" and impl == "local":
        raise ValueError(
            "--cp-comm-type p2p needs --transformer-impl transformer_engine, not local: give a2a"
        )
    heads = known(config.language.num_attention_heads)
    tensor = parallel.tensor_model_parallel_size
    if parallel.context_exchange == "a2a" and heads // tensor % context != 0:
        raise ValueError(
            f"--num-attention-heads {heads} over --tensor-model-parallel-size {tensor} leaves "
            f"{heads // tensor} heads, which --context-parallel-size {context} does not divide: "
            "give a --context-parallel-size that does"
        )


def check_vision(config: RunConfig) -> None:
    """Heads and widths of the vision tower divide likewise, and a tile holds a patch."""
    vision = config.vision
    split = config.parallel.vision_parallel == "tensor"
    tensor = config.parallel.tensor_model_parallel_size if split else 1
    tensor_flag = "--tensor-model-parallel-size"
    heads = known(vision.vision_num_attention_heads)
    ffn = known(vision.vision_ffn_hidden_size)
    width = known(vision.vision_hidden_size)
    check_divisible("--vision-hidden-size", width, "--vision-num-attention-heads", heads)
    for number_flag, number in (
        ("--vision-num-attention-heads", heads),
        ("--vision-ffn-hidden-size", ffn),
    ):
        if number % tensor != 0:
            raise ValueError(
                f"{number_flag} {number} cannot be divided by {tensor_flag} {tensor}: give a "
                f"{tensor_flag} that divides {number}, or --vision-parallel data"
            )
    _check_hf_tower(config)
    parse_projector_type(vision.mm_projector_type)
    if vision.cross_image_attention:
        _check_feature_attention(config, "--cross-image-attention", "images of a sample")
    if vision.temporal_encoder_layers:
        flag = f"--temporal-encoder-layers {vision.temporal_encoder_layers}"
        _check_feature_attention(config, flag, "frames of a video")
    else:
        _check_no_frames(config)
    check_divisible(
        "--hidden-size of the projector",
        known(config.language.hidden_size),
        tensor_flag,
        config.parallel.tensor_model_parallel_size,
    )
    image, patch = known(vision.vision_image_size), known(vision.vision_patch_size)
    if patch > image:
        raise ValueError(
            f"--vision-patch-size {patch} is more than --vision-image-size {image}: "
            "a tile must hold at least one patch"
        )
    layers, selected = known(vision.vision_num_layers), known(vision.mm_vision_select_layer)
    if known(vision.built_layers) < 1:
        raise ValueError(
            f"--mm-vision-select-layer {selected} lies before the first of --vision-num-layers "
            f"{layers}: give -1 to {-layers}"
        )


def _check_hf_tower(config: RunConfig) -> None:
    """A tower of transformers comes with its settings, and is whole on each rank."""
    vision, parallel, recompute = config.vision, config.parallel, config.recompute
    kind = f"--vision-model-type {vision.vision_model_type}"
    if vision.vision_model_type not in HF_TOWERS:
        if vision.vision_hf_config is not None:
            raise ValueError(
                f"--vision-hf-config is of a tower that transformers computes ({kind} is not "
                f"among {', '.join(HF_TOWERS)}): drop it"
            )
        return
    if vision.vision_hf_config is None:
        raise ValueError(
            f"{kind} needs --vision-hf-config: start from a checkpoint, which brings it"
        )
    tensor = parallel.tensor_model_parallel_size
    if tensor > 1 and parallel.vision_parallel == "tensor":
        raise ValueError(
            f"{kind} is computed by transformers, which --tensor-model-parallel-size {tensor} "
            "cannot split: add --vision-parallel data"
        )
    if recompute.recompute_vision and recompute.granularity == "selective":
        raise ValueError(
            f"--recompute-vision: {kind} is computed by transformers, whose attention is not "
            "recomputed alone: give --recompute-granularity full, or drop it"
        )


def _check_no_frames(config: RunConfig) -> None:
    """Nothing is said of an encoder that is off."""
    frames = config.vision.temporal_encoder_max_frames
    if config.asks_for("temporal_encoder_max_frames"):
        raise ValueError(
            f"--temporal-encoder-max-frames {frames} is of an encoder that is off: give "
            "--temporal-encoder-layers, or drop it"
        )


def _check_feature_attention(config: RunConfig, flag: str, seen: str) -> None:
    """All features that see each other are on each rank, in heads of equal width."""
    parallel = config.parallel
    if parallel.context_parallel_size > 1:
        raise ValueError(
            f"{flag} sees all {seen}, which --context-parallel-size "
            f"{parallel.context_parallel_size} spreads over ranks: give 1, or drop it"
        )
    if parallel.shares_views:
        raise ValueError(
            f"{flag} sees all {seen}, of which --vision-parallel data gives a rank "
            "the features that it places: give --vision-parallel tensor, or drop it"
        )
    if config.lora.adapts:
        raise ValueError(
            f"{flag} with --lora-rank {config.lora.lora_rank}: exported adapters have no place for "
            "it; drop one of them"
        )
    check_divisible(
        f"{flag}: --hidden-size",
        known(config.language.hidden_size),
        "--num-attention-heads",
        known(config.language.num_attention_heads),
    )


def check_data_parallel(config: RunConfig) -> None:
    """Parameter gathering overlaps only with what it builds on."""
    parallel = config.parallel
    if not parallel.overlap_param_gather:
        return
    for option, given in (
        ("--use-distributed-optimizer", parallel.use_distributed_optimizer),
        ("--overlap-grad-reduce", parallel.overlap_grad_reduce),
    ):
        if not given:
            raise ValueError(f"--overlap-param-gather needs {option}: add it")


def check_precision(config: RunConfig) -> None:
    """Number formats that the implementation and the device have."""
    parallel, precision = config.parallel, config.precision
    _check_fp16(config)
    if precision.tf32 and parallel.device == "cpu":
        raise ValueError("--tf32 is of a GPU's matrix products, and --device is cpu: drop it")
    if precision.grad_reduce_in_bf16 and not precision.bf16:
        raise ValueError("--grad-reduce-in-bf16 needs --bf16: add it, or drop the flag")
    if precision.grad_reduce_in_bf16 and precision.accumulate_allreduce_grads_in_fp32:
        raise ValueError(
            "--grad-reduce-in-bf16 contradicts --accumulate-allreduce-grads-in-fp32: give one"
        )
    if parallel.transformer_impl == "transformer_engine" and parallel.device == "cpu":
        raise ValueError(
            "--transformer-impl transformer_engine needs a GPU, and --device is cpu: "
            "give --transformer-impl local"
        )
    _check_attention(config)


def _check_attention(config: RunConfig) -> None:
    """The attention that is asked for exists for the implementation, device and dtype."""
    parallel = config.parallel
    backend = f"--attention-backend {parallel.attention_backend}"
    if parallel.transformer_impl == "transformer_engine":
        if parallel.context_parallel_size > 1 and parallel.context_exchange == "a2a":
            allowed = ("auto", "flash", "local")
            if parallel.attention_backend not in allowed:
                raise ValueError(
                    f"{backend} with --cp-comm-type a2a: that exchange is this project's and has "
                    f"{', '.join(allowed)}; give one, or --cp-comm-type p2p"
                )
        return
    if parallel.attention_backend == "fused":
        raise ValueError(
            f"{backend} needs --transformer-impl transformer_engine, not local: give another"
        )
    if parallel.attention_backend == "flash":
        if parallel.device == "cpu":
            raise ValueError(f"{backend} needs a GPU, and --device is cpu: give auto")
        if not config.precision.is_half:
            raise ValueError(f"{backend} has no float32: add --bf16 or --fp16, or give unfused")


def _check_fp16(config: RunConfig) -> None:
    """One 16-bit format, and a scale that says how it is chosen once."""
    precision = config.precision
    adapting = ("initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis")
    if precision.bf16 and precision.fp16:
        raise ValueError("--bf16 contradicts --fp16: give one")
    for name in ("loss_scale", *adapting):
        if config.asks_for(name) and not precision.fp16:
            raise ValueError(f"{all_fields()[name].option} is for --fp16: add it, or drop the flag")
    for name in adapting:
        if config.asks_for(name) and precision.loss_scale is not None:
            raise ValueError(
                f"{all_fields()[name].option} is about a scale that adapts, and --loss-scale "
                f"{precision.loss_scale:g} stays: give one of them"
            )
    if precision.initial_loss_scale < precision.min_loss_scale:
        raise ValueError(
            f"--initial-loss-scale {precision.initial_loss_scale:g} is less than --min-loss-scale "
            f"{precision.min_loss_scale:g}: give more"
        )


def check_sequence(config: RunConfig) -> None:
    """The pack divides where it is split. Positions restart in each sample of a pack, so its length
    may exceed --max-position-embeddings; samples are checked when the store is read."""
    sequence = known(config.data.seq_length)
    tensor = config.parallel.tensor_model_parallel_size
    if config.parallel.sequence_parallel:
        if tensor == 1:
            raise ValueError(
                "--sequence-parallel needs --tensor-model-parallel-size 2 or more, not 1: drop it"
            )
        check_divisible(
            "--sequence-parallel: --seq-length", sequence, "--tensor-model-parallel-size", tensor
        )


def check_divisible(flag: str, number: int, divisor_flag: str, divisor: int) -> None:
    """Raise ValueError where ``divisor`` does not divide ``number``."""
    if number % divisor != 0:
        raise ValueError(
            f"{flag} {number} cannot be divided by {divisor_flag} {divisor}: "
            f"give a {divisor_flag} that divides {number}"
        )


def known(value: int | None) -> int:
    """A value that ``validate`` has found to be set."""
    assert value is not None
    return value
