"""Which part of every parameter the running model of this rank holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from megatron_llava.models.llava import LlavaModel
from megatron_llava.parallel.shards import Shard


def model_shards(models: Iterable[LlavaModel]) -> list[Shard]:
    """Every parameter of this rank, as float32 copies; core's process groups must exist.

    Core's sharded state dict says which part of a layout-free checkpoint a parameter is.

    Args:
        models: the bare model chunks of this rank: one, or one for each virtual pipeline stage.
    """
    shards: list[Shard] = []
    for model in models:
        state = model.sharded_state_dict()
        # The gate and the input half of SwiGLU are one parameter, but two parts of a tensor.
        apply_factories(state)
        tensors = [part for part in _leaves(state) if isinstance(part, ShardedTensor)]
        shards += [_to_shard(tensor, model.vocab_size) for tensor in tensors]
    return [shard for shard in shards if shard.array.size]


def _leaves(state: object) -> Iterator[object]:
    """The values of nested dicts and lists."""
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, (list, tuple)):
        for value in state:
            yield from _leaves(value)
    else:
        yield state


def _to_shard(tensor: ShardedTensor, vocab_size: int) -> Shard:
    # A copy: the optimizer changes the parameter in place.
    array = np.array(tensor.data.detach().float().cpu().numpy())
    key, layers = tensor.key, tensor.prepend_axis_num
    shape, offset = tuple(tensor.global_shape), tuple(tensor.global_offset)
    if layers:
        # The layers of a block are one tensor in a checkpoint, with the layer as its first axis.
        assert layers == 1 and ".layers." in key, (key, layers)
        key = key.replace(".layers.", f".layers.{offset[0]}.", 1)
        shape, offset = shape[1:], offset[1:]
    if tensor.allow_shape_mismatch:
        # Core's mark of a vocabulary, whose padding depends on the layout.
        array = array[: max(vocab_size - offset[0], 0)]
        shape = (vocab_size, *shape[1:])
    return Shard(key, shape, offset, array)
