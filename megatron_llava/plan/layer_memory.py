"""Bytes that the backward of one decoder layer needs of its forward, on one rank.

For the local layer implementation, as torch and core save them. R positions of the rank, r of them
where sequence parallelism splits the norms (else R), b bytes of an activation; of one rank n query
and k key/value heads of width d and an MLP of f; H the width of the residual stream. "learns" is 1
where the weights of the layer do.

On a GPU, with the fused norm and a kernel for variable lengths:

    two norms         2 r (H b + 4)          their input and its scale
    two linears       2 r H b       learns   what the norms gave
    rotary angles     4 R d b                cosine and sine, for queries and keys
    attention         R (n + k) d b          turned queries and keys
                      R (n + 2 k) d b        the fused projection, of which the values are a part
                      R (n d b + 4 n)        the result, and its log-sum-exp
    MLP               R 4 f b                gate and up, activated gate, up once more
                      R f b         learns   their product

On a CPU the norm is made of several operations: it works in float32 and keeps the normalised rows
too where its weight learns, and attention keeps keys and values repeated for every query head
(where there are fewer of them) and its results twice, before and after they are put together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_llava.config.lora import targeted_parts
from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.parallel.trained import Trained
from megatron_llava.plan.pack_load import PackLoad

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """Bytes of one layer."""

    input: int
    """Its input alone: what full recomputation keeps."""

    norms: int
    linears: int
    """Inputs of the four linears that are kept for the gradients of their weights only."""

    attention: int
    kept_attention: int
    """Of the attention, what selective recomputation keeps."""

    mlp: int

    @property
    def whole(self) -> int:
        """Without recomputation."""
        return self.norms + self.linears + self.attention + self.mlp

    @property
    def selective(self) -> int:
        """With the core of attention computed again."""
        return self.norms + self.linears + self.kept_attention + self.mlp


def decoder_layer(config: RunConfig, load: PackLoad, learning: Trained) -> LayerMemory:
    """One layer of the language model.

    Args:
        config: a configuration whose model fields are filled.
        load: the rank's share of a pack.
        learning: what is trained.
    """
    language, tensor = config.language, config.parallel.tensor_model_parallel_size
    item = 2 if config.precision.is_half else FLOAT32
    rows, split = load.rows, rows_of_norms(config, load)
    hidden, ffn = known(language.hidden_size), known(language.ffn_hidden_size) // tensor
    learns = learning.language
    inner = _heads(config)[0] * known(language.head_width)
    attention, kept = _attention(config, rows, item)
    linears = 0
    if learns:
        linears += (2 * split * hidden + rows * ffn) * item
    reads_result = learns or (learning.adapters and _projection_reads_result(config))
    if reads_result and _has_own_copy(config):
        linears += rows * inner * item
    elif reads_result:
        kept += rows * inner * item
    if learning.adapters:
        linears += _adapters(config, load)
    return LayerMemory(
        input=split * hidden * item,
        norms=2 * norm(config, split, learns),
        linears=linears,
        attention=attention,
        kept_attention=kept,
        mlp=4 * rows * ffn * item,
    )


def rows_of_norms(config: RunConfig, load: PackLoad) -> int:
    """Positions of the residual stream on a rank."""
    tensor = config.parallel.tensor_model_parallel_size
    return -(-load.rows // tensor) if config.parallel.sequence_parallel else load.rows


def keeps_input(config: RunConfig) -> bool:
    """Whether a norm keeps its input itself, not a float32 copy."""
    return config.parallel.device == "cuda" or not config.precision.is_half


def norm(config: RunConfig, rows: int, learns: bool) -> int:
    """An RMS norm of the language model."""
    hidden = known(config.language.hidden_size)
    if config.parallel.device == "cpu":
        return rows * hidden * FLOAT32 * (1 + learns) + rows * FLOAT32
    item = 2 if config.precision.is_half else FLOAT32
    return rows * (hidden * item + FLOAT32)


def _heads(config: RunConfig) -> tuple[int, int]:
    """(query heads, key/value heads) of a tensor-parallel rank."""
    tensor = config.parallel.tensor_model_parallel_size
    heads, groups = known(config.language.num_attention_heads), known(config.language.query_groups)
    return heads // tensor, max(groups // tensor, 1)


def _attention(config: RunConfig, rows: int, item: int) -> tuple[int, int]:
    """(all that it keeps, what selective recomputation keeps)."""
    heads, groups = _heads(config)
    width = known(config.language.head_width) * rows * item
    rotary = 0 if config.parallel.transformer_impl == "transformer_engine" else 4 * width
    fused, scores = (heads + 2 * groups) * width, rows * heads * FLOAT32
    # Queries and keys are turned into new tensors; values stay a part of the fused projection.
    inputs = (heads + groups) * width + fused
    kept = rotary + inputs
    context = config.parallel.context_parallel_size
    on_cpu = config.parallel.device == "cpu"
    if context > 1:
        # Heads were exchanged: all three are parts of what arrived, which is kept before and after
        # it is put in order.
        shared = math.lcm(groups, context)
        arrived, expanded = 2 * (heads + 2 * shared), 2 * heads if on_cpu and heads > shared else 0
        return rotary + (arrived + expanded + heads) * width + scores, kept
    if not on_cpu:
        return kept + heads * width + scores, kept
    if heads > groups:
        return rotary + 4 * heads * width + scores, kept
    return kept + heads * width + scores, kept


def _has_own_copy(config: RunConfig) -> bool:
    """Whether the projection behind attention reads a copy of attention's result; on a GPU it
    reads the result itself, unless context-parallel ranks have exchanged it."""
    return config.parallel.device == "cpu" or config.parallel.context_parallel_size > 1


def _projection_reads_result(config: RunConfig) -> bool:
    """Whether an adapter keeps attention's result as it is, with nothing dropped."""
    lora = config.lora
    return not lora.lora_dropout and bool(targeted_parts("linear_proj", lora.lora_target_modules))


def _adapters(config: RunConfig, load: PackLoad) -> int:
    """What the adapters of a layer keep, but for attention's result where nothing is dropped.

    Each keeps its input, with dropout a copy of it and the mask (a byte on a GPU, else a number of
    the model's type), what is between its factors, and its spread second factor: for p parts of
    rank q [., p q] and [outputs, p q].
    """
    language, lora = config.language, config.lora
    tensor = config.parallel.tensor_model_parallel_size
    item = 2 if config.precision.is_half else FLOAT32
    rows, split = load.rows, rows_of_norms(config, load)
    hidden, ffn = known(language.hidden_size), known(language.ffn_hidden_size) // tensor
    heads, groups = _heads(config)
    width = known(language.head_width)
    # (rows of the input, inputs, rows between the factors, outputs)
    sizes = {
        "linear_qkv": (split, hidden, rows, (heads + 2 * groups) * width),
        "linear_proj": (rows, heads * width, split, hidden),
        "linear_fc1": (split, hidden, rows, 2 * ffn),
        "linear_fc2": (rows, ffn, split, hidden),
    }
    mask = 0
    if lora.lora_dropout:
        mask = item if config.parallel.device == "cpu" else 1
    total = 0
    for name, (rows_in, inputs, rows_between, outputs) in sizes.items():
        columns = len(targeted_parts(name, lora.lora_target_modules)) * lora.lora_rank
        if not columns:
            continue
        total += (rows_between + outputs) * columns * item
        if name != "linear_proj" or not _projection_reads_result(config):
            total += rows_in * inputs * (item + mask)
    return total
