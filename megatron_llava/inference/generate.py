"""Generation for many prompts at once.

Prompts share packs as training samples do. A pack is computed once, and its keys and values are
kept: each step then computes one row of each answer. Works on one pipeline stage, at any
tensor-parallel size; its vision tower may be on another device than its decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from megatron.core import tensor_parallel

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.video import video_settings
from megatron_llava.data.collate import collate
from megatron_llava.data.row_plan import visuals_of_samples
from megatron_llava.data.row_plan_library import row_planner
from megatron_llava.data.sample import Sample
from megatron_llava.inference.sampling import Sampling, TokenChooser, choose_tokens
from megatron_llava.models.llava import LlavaModel
from megatron_llava.ops.key_value_cache import KeyValueCache
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What the model answered to one prompt.

    Attributes:
        token_ids: the new tokens, without the one that ended the answer.
        prompt_logits: float32 [vocabulary], the logits from which the first token was chosen.
    """

    token_ids: tuple[int, ...]
    prompt_logits: torch.Tensor


def prompt_sample(
    token_ids: np.ndarray, images: Sequence[bytes], sizes: Sequence[tuple[int, int]], source: str
) -> Sample:
    """A prompt (IMAGE_TOKEN_INDEX at each image) as a sample without labels."""
    return Sample(
        token_ids=token_ids,
        label_mask=np.zeros(len(token_ids), dtype=np.uint8),
        image_sizes=tuple(sizes),
        images=tuple(images),
        source=source,
    )


@torch.no_grad()
def generate(
    model: LlavaModel,
    prompts: Sequence[Sample],
    settings: ImageSettings,
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    rows_per_pack: int,
    sampling: Sampling | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[Generated]:
    """Answer every prompt, in order.

    Args:
        max_new_tokens: an answer that has not ended by then is cut there.
        stop_token_ids: tokens that end an answer.
        rows_per_pack: positions that share a forward pass; a longer prompt gets one of its own.
        sampling: how tokens are chosen; None for the likeliest.
        numbers: of the prompts, which decide what is drawn for them; None counts from 0.

    Raises:
        ValueError: one line naming the prompt, for a token or an image that cannot be used.
    """
    assert max_new_tokens >= 1
    assert model.pre_process and model.post_process, "generation runs on one pipeline stage"
    for prompt in prompts:
        _check_tokens(prompt, model.vocab_size)
    model.eval()
    stops = set(stop_token_ids)
    remaining = iter(range(len(prompts)) if numbers is None else numbers)
    for pack in _packs(prompts, settings, rows_per_pack, max_new_tokens):
        choosers = [
            TokenChooser(sampling or Sampling(), next(remaining), _text_ids(prompt))
            for prompt in pack
        ]
        yield from _generate_pack(model, pack, settings, max_new_tokens, stops, choosers)


def _text_ids(prompt: Sample) -> list[int]:
    return prompt.token_ids[prompt.token_ids != IMAGE_TOKEN_INDEX].tolist()


def _check_tokens(prompt: Sample, vocab_size: int) -> None:
    largest = int(prompt.token_ids.max())
    if largest >= vocab_size:
        raise ValueError(
            f"{prompt.source}: token {largest} is beyond the model's vocabulary of {vocab_size}: "
            "use the tokenizer of the model"
        )


def _packs(
    prompts: Sequence[Sample], settings: ImageSettings, rows_per_pack: int, max_new_tokens: int
) -> Iterator[list[Sample]]:
    """Neighbouring prompts whose rows, with the answers, fit together."""
    pack: list[Sample] = []
    rows = 0
    for prompt in prompts:
        needed = _rows(prompt, settings) + max_new_tokens
        if pack and rows + needed > rows_per_pack:
            yield pack
            pack, rows = [], 0
        pack.append(prompt)
        rows += needed
    if pack:
        yield pack


def _rows(prompt: Sample, settings: ImageSettings) -> int:
    """Positions of a prompt with its images expanded."""
    sizes = prompt.image_sizes
    try:
        tokens, _ = row_planner().count(
            visuals_of_samples([sizes], settings), settings, video_settings(settings)
        )
    except ValueError as error:
        raise ValueError(f"{prompt.source}: {error}") from None
    return len(prompt.token_ids) - len(sizes) + int(tokens.sum())


def _generate_pack(
    model: LlavaModel,
    prompts: list[Sample],
    settings: ImageSettings,
    max_new_tokens: int,
    stops: set[int],
    choosers: list[TokenChooser],
) -> list[Generated]:
    device = model.language_model.embedding.word_embeddings.weight.device
    multiple = _row_multiple(model)
    packed = collate(prompts, settings, pad_multiple=multiple)
    # Images may be encoded elsewhere than where the decoder is: it gets no pixels.
    features = model.visual_features(packed.to_torch(model.pixel_table.device)).to(device)
    batch = replace(packed, tiles=None).to_torch(device)
    cache = KeyValueCache(batch.cu_seqlens, room=max_new_tokens - 1)
    hidden = model.decode(batch, features, cache)
    rows = batch.cu_seqlens[1 : len(prompts) + 1].long() - 1
    # The padding of a pack is a sequence too.
    tokens = torch.zeros(math.ceil(len(cache.lengths) / multiple) * multiple, dtype=torch.long)
    answers: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    first_logits = None
    for step in range(max_new_tokens):
        logits = tensor_parallel.gather_from_tensor_model_parallel_region(
            model.logits(hidden, rows)
        )[:, : model.vocab_size].float()
        first_logits = logits if first_logits is None else first_logits
        chosen = choose_tokens(choosers, logits)
        for number, token in enumerate(chosen):
            ended[number] = ended[number] or token in stops
            if not ended[number]:
                answers[number].append(token)
        if all(ended) or step + 1 == max_new_tokens:
            break
        tokens[: len(chosen)] = torch.tensor(chosen)
        hidden = model.decode_next(tokens.to(device), cache)
        rows = torch.arange(len(prompts), device=device)
    assert first_logits is not None
    return [
        Generated(token_ids=tuple(answer), prompt_logits=first_logits[number].cpu())
        for number, answer in enumerate(answers)
    ]


def _row_multiple(model: LlavaModel) -> int:
    """Rows are dealt evenly to the tensor-parallel ranks under sequence parallelism."""
    core = model.config
    return core.tensor_model_parallel_size if core.sequence_parallel else 1
