"""A Hugging Face folder as the start of a run: its settings, its weights, what travels along.

Every rank reads the parameters that its part of the model has, one at a time, and keeps its share:
nothing is written, and memory holds one parameter beside the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_llava.config.model_yaml import MODEL_GROUPS
from megatron_llava.config.run import all_fields
from megatron_llava.config.towers import HF_TOWERS
from megatron_llava.convert.convert import (
    MegatronTensors,
    check_hf,
    common_dtype,
    megatron_shapes,
    passthrough_of,
)
from megatron_llava.convert.hf_folder import CONFIG_FILE, copy_side_files, read_mapping
from megatron_llava.convert.hf_reader import ORIGINAL, HFReader
from megatron_llava.convert.root_files import HF_FOLDER, model_settings, write_root_files
from megatron_llava.convert.tensor_source import converted
from megatron_llava.vision.hf_tower import hf_name

if TYPE_CHECKING:
    from megatron_llava.models.llava import LlavaModel

_TOWER = "vision_model."


def hf_model_fields(folder: str | Path) -> tuple[dict[str, Any], str]:
    """The fields of a model.yaml that a conversion would write, and the file that they are from.

    Headers of weights are read and compared with the configuration.

    Raises:
        ValueError: one line: the folder is damaged, unsupported or contradicts itself.
    """
    path = str(Path(folder) / CONFIG_FILE)
    _, mapping = open_hf(folder)
    settings = model_settings(mapping, path)
    names = [name for name, spec in all_fields().items() if spec.group in MODEL_GROUPS]
    return {n: settings.get(n) for n in names if settings.get(n) is not None}, path


def load_hf_weights(
    folder: str | Path, models: Sequence[LlavaModel], may_lack: Sequence[str] = ()
) -> list[str]:
    """Put a folder's weights into this rank's part of the model, whatever the layout.

    They are rounded to the dtype of the model's parameters, as those of a checkpoint are; adapters
    keep their values.

    Args:
        may_lack: parameters that keep their values, for such a folder has none.

    Returns:
        Those of ``may_lack`` that the models have.

    Raises:
        ValueError: one line: see ``hf_model_fields``, or a tensor's bytes are damaged.
    """
    fresh: set[str] = set()
    reader, mapping = open_hf(folder)
    source = _ByPlace(MegatronTensors(reader, mapping), mapping)
    with torch.no_grad():
        for model in models:
            fresh |= _fill(model, source, may_lack, folder)
    return [name for name in may_lack if name in fresh]


def write_hf_beside(folder: str | Path, target: Path) -> None:
    """Write into ``target`` what a conversion puts beside the weights: see ``root_files``."""
    reader, mapping = open_hf(folder)
    dtype = common_dtype(reader, mapping, any_of_them=True)
    copy_side_files(Path(folder), target / HF_FOLDER)
    write_root_files(target, mapping, passthrough_of(reader, mapping), dtype)


def open_hf(folder: str | Path) -> tuple[HFReader, dict[str, Any]]:
    """A folder that holds exactly the tensors of its configuration, and its mapping.

    Raises:
        ValueError: one line: see ``hf_model_fields``.
    """
    reader = HFReader(folder)
    if reader.layout == ORIGINAL:
        raise ValueError(
            f"{folder}: has the tensor names of the original LLaVA code: convert it with "
            "tools/convert_checkpoint.py --from llava --to megatron"
        )
    mapping = read_mapping(Path(folder), reader)
    # A run has one dtype, whatever those of the folder are.
    common_dtype(reader, mapping, any_of_them=True)
    check_hf(reader, mapping)
    return reader, mapping


class _ByPlace:
    """Whole Megatron parameters by their key in a checkpoint, the last one kept."""

    def __init__(self, source: MegatronTensors, mapping: dict[str, Any]) -> None:
        from megatron_llava.models.specs import NORM_KEYS

        self._source = source
        self._names: dict[str, str] = {}
        kind = mapping["vision_model_type"]
        for name in megatron_shapes(mapping):
            key = name
            if kind in HF_TOWERS and name.startswith(_TOWER):
                key = _TOWER + hf_name(kind, name.removeprefix(_TOWER))
            for norm, stored in NORM_KEYS.items():
                # Of the language model and the tower alike.
                key = key.replace(f".{norm}", f".{stored}")
            self._names[key] = name
        self._last: tuple[str, Tensor] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._names

    def tensor(self, key: str) -> Tensor:
        if self._last is None or self._last[0] != key:
            self._last = None
            self._last = key, self._source.tensor(self._names[key])
        return self._last[1]


def _fill(
    model: LlavaModel, source: _ByPlace, may_lack: Sequence[str], folder: str | Path
) -> set[str]:
    """Fill a model; the names of those of ``may_lack`` that it has. folder: for messages."""
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensorFactory

    from megatron_llava.peft.targets import is_adapter

    fresh: set[str] = set()
    state = model.sharded_state_dict()
    for name, entry in state.items():
        # Objects are Transformer Engine's own state (FP8 histories), which starts fresh.
        if is_adapter(name) or isinstance(entry, ShardedObject):
            continue
        # The gate and the input half of SwiGLU are one parameter, but two parts of a tensor.
        shards = _leaves(entry.build()) if isinstance(entry, ShardedTensorFactory) else [entry]
        for shard in shards:
            key = _key(shard)
            if key not in source:
                assert name in may_lack, f"no Hugging Face tensor makes {name}"
                fresh.add(name)
                continue
            _copy_share(shard, converted(source.tensor(key), shard.data.dtype, f"{folder}: {key}"))
    lacking = {name for name, _ in model.named_parameters() if name not in state}
    assert not lacking, f"parameters that no checkpoint holds: {sorted(lacking)}"
    return fresh


def _leaves(built: Any) -> list[Any]:
    if isinstance(built, dict):
        built = list(built.values())
    if isinstance(built, (list, tuple)):
        return [leaf for part in built for leaf in _leaves(part)]
    return [built]


def _key(shard: Any) -> str:
    """The key of a ShardedTensor, with the number of its layer, which is an axis in front."""
    key: str = shard.key
    if not shard.prepend_axis_num:
        return key
    assert shard.prepend_axis_num == 1 and ".layers." in key, (key, shard.prepend_axis_num)
    return key.replace(".layers.", f".layers.{shard.global_offset[0]}.", 1)


def _copy_share(shard: Any, whole: Tensor) -> None:
    """Copy this rank's share of a parameter into the model, of which ``shard.data`` is a view."""
    axes = shard.prepend_axis_num
    shape, offset = shard.global_shape[axes:], shard.global_offset[axes:]
    target = shard.data
    if shard.allow_shape_mismatch:
        # Core's mark of a vocabulary, whose padding depends on the layout: rows of zeros.
        target.zero_()
        count = min(max(whole.shape[0] - offset[0], 0), target.shape[0])
        target = target[:count]
        whole = whole[offset[0] : offset[0] + count]
        offset = (0, *offset[1:])
    else:
        assert tuple(whole.shape) == tuple(shape), (shard.key, whole.shape, shape)
    for axis, (start, size) in enumerate(zip(offset, target.shape, strict=True)):
        whole = whole.narrow(axis, start, size)
    target.copy_(whole)
