"""Memory of one rank by kind, from the settings alone.

Weights, gradients and optimizer state follow from the parameters and core's wrappers: without the
distributed optimizer every rank has a gradient and, in bfloat16, a float32 copy of each parameter
that learns, and two float32 moments; with it the copy and the moments are shared out over the
data- and context-parallel ranks. What is frozen has weights only, packed with --load-in-4bit.

Activations are what autograd saves between forward and backward (``layer_memory``,
``vision_memory``), as many times as core's pipeline schedule has microbatches in flight. What these
formulas leave out is said by ``working`` (temporary tensors of the largest operation, estimated)
and by the reserve of a GPU (``gpus``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from megatron_llava.config.lora import PARTS
from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.observe.gradient_buffer import bucket_size, is_vocabulary, padded_numel
from megatron_llava.observe.parameters import Parameter, part_parameters
from megatron_llava.observe.parts import Part, parts_of_rank
from megatron_llava.ops.four_bit import four_bit_bytes
from megatron_llava.parallel.trained import Trained
from megatron_llava.plan.layer_memory import (
    FLOAT32,
    decoder_layer,
    keeps_input,
    norm,
    rows_of_norms,
)
from megatron_llava.plan.pack_load import PackLoad
from megatron_llava.plan.schedule import ROUNDS, Kinds, peak, steps
from megatron_llava.plan.vision_memory import vision_memory

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
"""Of an element of optimizer state."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of one rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Of the decoder, at the peak."""

    vision: int
    """Activations of the tower, the projector and the packing, at the same time."""

    logits: int
    """Activations of the output layer and the softmax, at the same time."""

    communication: int
    """Buffers of sequence and pipeline parallelism."""

    working: int
    """Temporary tensors of the largest operation."""

    loading: int = 0
    """Weights and gradients before weights are packed in 4 bits, when there is nothing else."""

    @property
    def total(self) -> int:
        training = (getattr(self, field.name) for field in fields(self) if field.name != "loading")
        return max(sum(training), self.loading)

    @property
    def saved(self) -> int:
        """All that autograd keeps."""
        return self.activations + self.vision + self.logits


def rank_memory(
    config: RunConfig, world_size: int, load: PackLoad, learning: Trained, pipeline_rank: int = 0
) -> RankMemory:
    """Memory of the ranks of a pipeline stage.

    Args:
        config: a validated configuration, its placement of layers included.
        world_size: ranks of the run.
        load: a rank's share of the largest pack.
        learning: what is trained.
        pipeline_rank: the stage.
    """
    parts = parts_of_rank(config, pipeline_rank)
    weights, gradients, optimizer = _states(config, world_size, parts, learning)
    activations, vision, logits = _activations(
        config, parts, pipeline_rank, config.num_microbatches(world_size), load, learning
    )
    return RankMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        vision=vision,
        logits=logits,
        communication=_communication(config, load),
        working=_working(config, parts, load, learning),
        loading=_loading(config, world_size, parts, learning),
    )


def _item(config: RunConfig) -> int:
    return 2 if config.precision.is_half else FLOAT32


def _states(
    config: RunConfig, world_size: int, parts: Sequence[Part], learning: Trained
) -> tuple[int, int, int]:
    """(weights, gradients, optimizer)."""
    parallel, item = config.parallel, _item(config)
    data_ranks = config.data_parallel_size(world_size)
    sharing = data_ranks * parallel.context_parallel_size
    gradient = FLOAT32 if config.precision.reduce_grads_in_fp32 else item
    moments = _optimizer_bytes(config)
    weights = gradients = optimizer = 0
    for part in parts:
        everything = part_parameters(config, layers=part.layers, first=part.first, last=part.last)
        learn = [parameter for parameter in everything if learning.learns(parameter.name)]
        numel = sum(parameter.numel for parameter in learn)
        frozen = sum(_bytes(config, p) for p in everything if not learning.learns(p.name))
        if parallel.use_distributed_optimizer:
            alone = {p for p in learn if is_vocabulary(p) and _tied_apart(config)}
            bucket = bucket_size(config, part, data_ranks)
            padded = padded_numel(learn, alone, bucket, sharing)
            weights += frozen + padded * item
            gradients += padded * gradient
            optimizer += math.ceil(-(-padded // sharing) * moments)
        else:
            weights += frozen + numel * item
            gradients += numel * gradient
            optimizer += math.ceil(numel * moments)
    return weights, gradients, optimizer


def _bytes(config: RunConfig, parameter: Parameter) -> int:
    """Of a frozen parameter."""
    if config.lora.load_in_4bit and _is_packed(parameter.name):
        double_quant = config.lora.bnb_4bit_use_double_quant
        return four_bit_bytes(parameter.numel, double_quant=double_quant)
    return parameter.numel * _item(config)


def _is_packed(name: str) -> bool:
    """Whether --load-in-4bit packs a parameter: the weights of the decoder's linears."""
    weights = tuple(f"{linear}.weight" for linear in PARTS)
    return name.startswith("language_model.decoder.layers.") and name.endswith(weights)


def _loading(config: RunConfig, world_size: int, parts: Sequence[Part], learning: Trained) -> int:
    if not config.lora.load_in_4bit:
        return 0
    whole = config.with_values({"load_in_4bit": False}, "default")
    weights, gradients, _ = _states(whole, world_size, parts, learning)
    return weights + gradients


def _optimizer_bytes(config: RunConfig) -> float:
    """Bytes on the device of the state of one parameter: the main weight and two moments."""
    settings, half = config.optimizer, config.precision.is_half
    main = _BYTES[settings.main_params_dtype] if half else 0
    moments = _BYTES[settings.exp_avg_dtype] + _BYTES[settings.exp_avg_sq_dtype]
    if settings.optimizer_cpu_offload:
        # Of what stays, core keeps the gradient in float32 as well.
        return (main + moments + FLOAT32) * (1 - settings.optimizer_offload_fraction)
    if settings.use_precision_aware_optimizer:
        main = _BYTES[settings.main_params_dtype]
    return main + moments


def _tied_apart(config: RunConfig) -> bool:
    tied = not config.language.untie_embeddings_and_output_weights
    return tied and config.parallel.pipeline_model_parallel_size > 1


def _activations(
    config: RunConfig,
    parts: Sequence[Part],
    pipeline_rank: int,
    microbatches: int,
    load: PackLoad,
    learning: Trained,
) -> tuple[int, int, int]:
    """(decoder, vision, logits) when the rank keeps the most."""
    kept = [_part(config, part, load, learning) for part in parts]
    moments = [
        _moments(config, part, load, learning, held) for part, held in zip(parts, kept, strict=True)
    ]
    stages = config.parallel.pipeline_model_parallel_size
    order = steps(stages, pipeline_rank, len(parts), min(microbatches, ROUNDS * stages))
    decoder, vision, logits = peak(order, kept, moments)
    return decoder, vision, logits


def _part(config: RunConfig, part: Part, load: PackLoad, learning: Trained) -> tuple[int, int, int]:
    """(decoder, vision, logits) that a part keeps of one microbatch."""
    vision = vision_memory(config, load, learning).kept if part.first else 0
    if config.aligns_only:
        return 0, vision, 0
    layer, recompute = decoder_layer(config, load, learning), config.recompute
    if recompute.granularity == "full":
        chunk = known(recompute.recompute_num_layers)
        if recompute.recompute_method == "block":
            again = min(chunk, part.layers)
            decoder = again * layer.input + (part.layers - again) * layer.whole
        else:
            decoder = part.layers // chunk * layer.input
        decoder += load.rows * known(config.language.head_width) * FLOAT32
    else:
        each = layer.selective if recompute.granularity == "selective" else layer.whole
        decoder = part.layers * each
    if part.first and (keeps_input(config) or recompute.granularity == "full"):
        # With sequence parallelism the first input is a part of the rows of all ranks.
        hidden = known(config.language.hidden_size)
        decoder += (load.rows - rows_of_norms(config, load)) * hidden * _item(config)
    logits = _logits(config, load, learning) if part.last else 0
    return decoder, vision, logits


def _moments(
    config: RunConfig, part: Part, load: PackLoad, learning: Trained, kept: Kinds
) -> list[Kinds]:
    """How (decoder, vision, logits) differ while layers of a part run again in its backward.

    The softmax is gone when the decoder's layers run again, and those are gone when the tower's do.
    """
    decoder, _, logits = kept
    if config.aligns_only:
        return []
    moments: list[Kinds] = [(_recomputed(config, part, load, learning), 0, -logits)]
    if part.first:
        again = vision_memory(config, load, learning).recomputed
        moments.append((-decoder, again, -logits))
    return moments


def _recomputed(config: RunConfig, part: Part, load: PackLoad, learning: Trained) -> int:
    """What the backward of a part saves once more while a chunk of layers runs again."""
    recompute = config.recompute
    if recompute.granularity != "full":
        return 0
    layer = decoder_layer(config, load, learning)
    block = recompute.recompute_method == "block"
    chunk = 1 if block else known(recompute.recompute_num_layers)
    again = chunk * layer.whole
    # The first norm keeps what was kept already, where it works in the type of the residual stream.
    if keeps_input(config):
        again -= layer.input
    if block:
        # By then the layers behind, which are not computed again, have let theirs go.
        again -= (
            part.layers - min(known(recompute.recompute_num_layers), part.layers)
        ) * layer.whole
    return again


def _logits(config: RunConfig, load: PackLoad, learning: Trained) -> int:
    """The final norm, the rows with a loss, the float32 softmax over this rank's vocabulary."""
    language, tensor = config.language, config.parallel.tensor_model_parallel_size
    columns = language.padded_vocab_size(tensor) // tensor
    rows = norm(config, rows_of_norms(config, load), learning.language)
    selected = load.loss_rows * known(language.hidden_size) * _item(config) * learning.language
    return rows + selected + load.loss_rows * (columns * FLOAT32 + 2 * 8 + 1) + columns


def _communication(config: RunConfig, load: PackLoad) -> int:
    parallel, item = config.parallel, _item(config)
    hidden = known(config.language.hidden_size)
    gathered = load.rows * hidden * item if parallel.sequence_parallel else 0
    # A gradient that arrives and one that leaves; inputs of a stage are activations.
    stages = parallel.pipeline_model_parallel_size
    return gathered + (2 * rows_of_norms(config, load) * hidden * item if stages > 1 else 0)


def _working(config: RunConfig, parts: Sequence[Part], load: PackLoad, learning: Trained) -> int:
    """The larger of the MLP's and the output layer's temporary tensors in the backward."""
    if config.aligns_only:
        return load.rows * known(config.language.hidden_size) * FLOAT32
    language, tensor = config.language, config.parallel.tensor_model_parallel_size
    item, ffn = _item(config), known(language.ffn_hidden_size) // tensor
    hidden = known(language.hidden_size)
    products = load.rows * (5 * ffn + 2 * hidden) * item
    if config.lora.load_in_4bit:
        # The weight of the gate and the input half, unpacked.
        products += 2 * ffn * hidden * item
    if not any(part.last for part in parts):
        return products
    columns = language.padded_vocab_size(tensor) // tensor
    # In the backward the gradient in float32 beside the softmax, and twice in the model's type.
    return max(products, load.loss_rows * columns * (FLOAT32 + 2 * item))
