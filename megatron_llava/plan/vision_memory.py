"""Bytes that the backward of the tower, the projector and the packing needs, on one rank.

V views of E encoder rows (its patches, and CLIP's class token), F feature rows at the projector, D
the tower's width, of which a rank has the share d of the heads and the share f of the MLP; b bytes
of an activation. A frozen tower keeps nothing. A layer of the tower that learns:

    two norms         2 V E (D b + 8)     their input, its mean and its scale
    two linears       2 V E D b           what the norms gave
    attention         V E (4 d b + 4 n)   the fused projection, the result, its log-sum-exp
    MLP               V E 2 f b           before and after the activation (quick_gelu: 3 f)

An attention among L features of H, of which a rank has the share h of the heads, and in brackets
what is kept where its weights learn:

    norm and linear   L (H b + 8) [+ L H b]
    attention         L (4 h b + 4 n) [+ L h b]   the result once more, put together from sequences

The alignment loss of n samples keeps which rows and captions are whose, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.model import TEMPORAL_MLP_WIDTHS
from megatron_llava.config.projector import parse_projector_type
from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.parallel.trained import Trained
from megatron_llava.plan.layer_memory import FLOAT32
from megatron_llava.plan.pack_load import PackLoad
from megatron_llava.vision.settings import image_settings
from megatron_llava.vision.token_layout import MAX_TAPS


@dataclass(frozen=True, kw_only=True)
class VisionMemory:
    """Bytes of one microbatch."""

    kept: int
    """From the forward to the backward."""

    recomputed: int
    """More while layers of the tower run again."""


def vision_memory(config: RunConfig, load: PackLoad, learning: Trained) -> VisionMemory:
    """Tower, projector and packing of the first stage."""
    item = 2 if config.precision.is_half else FLOAT32
    kept, recomputed = _tower(config, load, item) if learning.tower else (0, 0)
    if learning.tower or learning.projector:
        kept += _projector(config, load, learning.projector, item)
        kept += _behind_projector(config, load, learning.projector, item)
        # Which feature was the largest, channel by channel, and of which ones: int64.
        kept += load.maxima * 8 * (known(config.language.hidden_size) + MAX_TAPS)
    if config.training.align_loss_coeff:
        kept += _alignment(config, load)
    return VisionMemory(kept=kept + _packing(config, load), recomputed=recomputed)


def _tower(config: RunConfig, load: PackLoad, item: int) -> tuple[int, int]:
    """(kept, more while layers run again)."""
    vision, parallel = config.vision, config.parallel
    tensor = parallel.tensor_model_parallel_size if parallel.vision_parallel == "tensor" else 1
    width, heads = known(vision.vision_hidden_size), known(vision.vision_num_attention_heads)
    ffn, share = known(vision.vision_ffn_hidden_size) // tensor, width // tensor
    patch = known(vision.vision_patch_size)
    patches = (known(vision.vision_image_size) // patch) ** 2
    rows = load.views * (patches + vision.kind.front_rows)
    stream = rows * width * item
    statistics = 2 * (FLOAT32 if parallel.device == "cuda" else item) * rows
    scores = rows * heads // tensor * FLOAT32
    result = rows * share * item
    mlp = (3 if vision.vision_hidden_act == "quick_gelu" else 2) * rows * ffn * item
    norm = 2 * stream + statistics
    embedding = load.views * patches * 3 * patch**2 * item
    whole = 4 * result + scores + mlp
    if (parts := vision.kind.hf) is not None:
        whole += 2 * rows * ffn * item * parts.gated + 2 * stream * parts.layer_scales
        if parts.rms_norms:
            # Its input in float32, the normed rows, the result.
            norm = rows * width * FLOAT32 + 2 * stream + rows * FLOAT32
            embedding += norm - stream
    whole += 2 * norm
    if vision.vision_model_type == "clip":
        embedding += stream + statistics
    layers, recompute = known(vision.built_layers), config.recompute
    if not recompute.recompute_vision or recompute.granularity is None:
        return embedding + layers * whole, 0
    if recompute.granularity == "selective":
        return embedding + layers * (whole - scores), 0
    chunk = known(recompute.recompute_num_layers)
    if recompute.recompute_method == "block":
        again = min(chunk, layers)
        return embedding + again * stream + (layers - again) * whole, whole - stream
    if layers % chunk:
        chunk = 1
    return embedding + layers // chunk * stream, chunk * whole - stream


def _projector(config: RunConfig, load: PackLoad, learns: bool, item: int) -> int:
    """Inputs of its linears where they learn, and of the activations between them."""
    width, hidden = known(config.vision.vision_hidden_size), known(config.language.hidden_size)
    share = hidden // config.parallel.tensor_model_parallel_size
    shape = parse_projector_type(config.vision.mm_projector_type)
    columns = width if learns else 0
    for number in range(1, shape.linears):
        # Column- and row-parallel in turn.
        columns += (share if number % 2 else hidden) * (1 + learns)
    columns += shape.blocks * (hidden * (1 + learns) + share * (1 + learns))
    return load.features * columns * item


def _behind_projector(config: RunConfig, load: PackLoad, learns: bool, item: int) -> int:
    """Temporal encoder and cross-image attention."""
    vision, kept = config.vision, 0
    if vision.cross_image_attention:
        kept += _feature_attention(config, load.features, learns, item)
    if vision.temporal_encoder_layers:
        hidden = known(config.language.hidden_size)
        rows = load.frames * load.features // load.views
        share = TEMPORAL_MLP_WIDTHS * hidden // config.parallel.tensor_model_parallel_size
        layer = _feature_attention(config, rows, learns, item) + _norm(config, rows, learns, item)
        layer += rows * share * (1 + learns) * item
        kept += vision.temporal_encoder_layers * layer
    return kept


def _feature_attention(config: RunConfig, rows: int, learns: bool, item: int) -> int:
    tensor = config.parallel.tensor_model_parallel_size
    share = known(config.language.hidden_size) // tensor
    heads = known(config.language.num_attention_heads) // tensor
    attention = rows * ((4 + learns) * share * item + heads * FLOAT32)
    return _norm(config, rows, learns, item) + attention


def _norm(config: RunConfig, rows: int, learns: bool, item: int) -> int:
    """A norm's input and statistics, and its result where the linear behind it learns."""
    hidden = known(config.language.hidden_size)
    statistics = 2 * (FLOAT32 if config.parallel.device == "cuda" else item)
    return rows * (hidden * (1 + learns) * item + statistics)


def _alignment(config: RunConfig, load: PackLoad) -> int:
    """Of the mean over samples; that by tokens also keeps the differences of all captions."""
    hidden = known(config.language.hidden_size)
    kept = load.samples * load.rows * FLOAT32
    if config.training.align_loss_pooling == "token":
        kept += load.loss_rows * (hidden + load.samples) * FLOAT32
    return kept


def _packing(config: RunConfig, load: PackLoad) -> int:
    """The transpose of the row plan (int64 offsets and rows, float32 weights) and text ids."""
    special = image_settings(config).num_special_rows
    table = load.features + load.maxima + special + load.text_tokens + 1
    return 8 * table + 12 * load.rows + 8 * load.text_tokens
