"""Jobs that count the memory of one training step, beside what was predicted."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch


class SavedTensors:
    """While it is entered, the bytes of the storages that autograd holds for backward passes.

    A storage counts once, however many tensors share it; those of ``outside`` do not count.
    """

    def __init__(self, outside: set[int]) -> None:
        self.most = 0
        self._outside, self._holders, self._bytes = outside, Counter(), 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: torch.Tensor) -> _Held:
        held, storage = _Held(tensor.detach()), tensor.untyped_storage()
        key = storage.data_ptr(), storage.nbytes()
        if key[0] in self._outside:
            return held
        if not self._holders[key]:
            self._bytes += key[1]
            self.most = max(self.most, self._bytes)
        self._holders[key] += 1
        weakref.finalize(held, self._let_go, key)
        return held

    def _let_go(self, key: tuple[int, int]) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self._bytes -= key[1]

    @staticmethod
    def _unpack(held: _Held) -> torch.Tensor:
        return held.tensor


class _Held:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages of tensors, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def memory_of_layouts(layouts: Sequence[list[str]]) -> list[dict[str, dict[str, int]]]:
    """Train a step at each layout; bytes by kind on this rank."""
    return [predicted_and_counted(arguments) for arguments in layouts]


def predicted_and_counted(arguments: list[str]) -> dict[str, dict[str, int]]:
    """One layout, given as a command line."""
    from distributed_jobs import Recorder

    from megatron_llava.config.cli import parse_args
    from megatron_llava.train import prepare
    from megatron_llava.training.run import open_trainer

    config = prepare(parse_args(arguments))
    with open_trainer(config, torch.device("cpu"), Recorder()) as trainer:
        sizes: list[Any] = []
        frames: list[int] = []
        maxima: list[int] = []
        parameters = [p for model in trainer.models for p in model.parameters()]
        parameters += _packed(trainer)
        constants = [b for model in trainer.models for b in model.buffers()]
        outside = {t.untyped_storage().data_ptr() for t in [*parameters, *constants]}
        with SavedTensors(outside) as saved:
            _step(trainer, sizes, frames, maxima)
        counted = {
            "weights": storage_bytes(parameters),
            "gradients": storage_bytes(_gradients(trainer)),
            "optimizer": _optimizer_bytes(trainer, outside),
            "saved": saved.most,
        }
        return {"counted": counted, "predicted": _predicted(trainer, sizes, frames, maxima)}


def _step(trainer: Any, sizes: list[Any], frames: list[int], maxima: list[int]) -> None:
    from megatron_llava.observe.microbatch_sizes import microbatch_sizes
    from megatron_llava.training.step import train_step

    source = trainer.source

    def seen(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            patches = source.settings.tokens_per_view
            sizes.append(microbatch_sizes(batch, source.share.view_rank, patches))
            frames.append(sum(number for _, number in batch.videos))
            maxima.append(0 if batch.max_taps is None else len(batch.max_taps))
            yield batch

    rows = source.step_rows()
    train_step(
        trainer.wrapped,
        trainer.optimizer,
        trainer.scheduler,
        seen(source.step(rows)),
        source.num_microbatches,
        rows,
        trainer.config.training.loss_reduction,
        text_loss_coeff=trainer.config.training.text_loss_coeff,
    )


def _packed(trainer: Any) -> Iterator[torch.Tensor]:
    """Weights that are held in 4 bits."""
    from megatron_llava.peft.four_bit_linears import FourBitLinear

    for model in trainer.models:
        for linear in model.modules():
            if isinstance(linear, FourBitLinear):
                yield from linear.four_bit.tensors()


def _gradients(trainer: Any) -> Iterator[torch.Tensor]:
    for part in trainer.wrapped:
        for buffer in part.buffers:
            yield buffer.grad_data


def _optimizer_bytes(trainer: Any, weights: set[int]) -> int:
    """Moments, and float32 copies of the weights that are no weights themselves."""
    found = []
    for chained in getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer]):
        inner = chained.optimizer
        for state in inner.state.values():
            found += [value for value in state.values() if torch.is_tensor(value)]
        found += [p for group in inner.param_groups for p in group["params"]]
    tensors = [t for t in found if t.untyped_storage().data_ptr() not in weights]
    return storage_bytes(tensors)


def _predicted(
    trainer: Any, sizes: Sequence[Any], frames: Sequence[int], maxima: Sequence[int]
) -> dict[str, int]:
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megatron_llava.parallel.trained import trained
    from megatron_llava.plan.memory import rank_memory
    from megatron_llava.plan.pack_load import PackLoad

    load = PackLoad(
        rows=max(s.rows for s in sizes),
        loss_rows=max(s.loss_rows for s in sizes),
        text_tokens=max(s.text_tokens for s in sizes),
        views=max(s.views for s in sizes),
        features=max(s.features for s in sizes),
        frames=max(1, *frames),
        maxima=max(maxima),
    )
    memory = rank_memory(
        trainer.config,
        dist.get_world_size(),
        load,
        trained(trainer.config),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "saved": memory.saved,
    }
