"""Which token comes next: the likeliest one, or one drawn as `transformers` would draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from megatron_llava.data.splitmix import one_hash


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen; by default greedily.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: how many tokens are drawn from; 0 for all.
        top_p: the likeliest tokens are drawn from that together have this probability.
        repetition_penalty: divides a positive logit, and multiplies a negative one, of each token
            that the question or the answer has had.
        seed: decides the draws, of each prompt for itself.

    Raises:
        ValueError: one line naming the flag.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"--temperature {self.temperature}: must be 0 or more")
        if self.top_k < 0:
            raise ValueError(f"--top-k {self.top_k}: must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p {self.top_p}: must be above 0 and at most 1")
        if not self.repetition_penalty > 0:
            raise ValueError(f"--repetition-penalty {self.repetition_penalty}: must be above 0")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError(
                "--top-k and --top-p choose among draws, and --temperature 0 draws nothing: give "
                "--temperature, such as 0.2, or drop them"
            )


class TokenChooser:
    """Chooses the tokens of one answer.

    Args:
        sampling: how.
        number: of the prompt, which decides its draws beside the seed.
        prompt_ids: the tokens of the question.
    """

    def __init__(self, sampling: Sampling, number: int, prompt_ids: Sequence[int]) -> None:
        self._draws = sampling.temperature > 0
        self._seen = list(prompt_ids)
        # In the order of transformers.
        steps = []
        if sampling.repetition_penalty != 1:
            steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if self._draws:
            steps.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                steps.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                steps.append(TopPLogitsWarper(sampling.top_p))
            self._generator = torch.Generator().manual_seed(
                one_hash(sampling.seed % (1 << 64), number) >> 1
            )
        self._steps = LogitsProcessorList(steps)

    @property
    def takes_the_likeliest(self) -> bool:
        """Whether nothing but the logits decides."""
        return not (self._draws or self._steps)

    def choose(self, logits_W: torch.Tensor) -> int:
        """The next token, by float32 logits over the vocabulary, on the CPU."""
        scores_1W = logits_W[None]
        if self._steps:
            scores_1W = self._steps(torch.tensor([self._seen]), scores_1W)
        if self._draws:
            probabilities = scores_1W[0].softmax(-1)
            token = int(torch.multinomial(probabilities, 1, generator=self._generator))
        else:
            token = int(scores_1W[0].argmax())
        self._seen.append(token)
        return token


def choose_tokens(choosers: Sequence[TokenChooser], logits_PW: torch.Tensor) -> list[int]:
    """The next token of each of P answers.

    Logits leave the device where a chooser has to see them, and once then.
    """
    if all(chooser.takes_the_likeliest for chooser in choosers):
        return logits_PW.argmax(-1).tolist()
    rows = logits_PW.cpu()
    return [chooser.choose(row_W) for chooser, row_W in zip(choosers, rows, strict=True)]
