"""Tokens are drawn as often as transformers would draw them."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import LogitsProcessorList

from megatron_llava.inference.sampling import Sampling, TokenChooser

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -4.0])


def shares(sampling: Sampling, prompt: list[int], draws: int = 4000) -> np.ndarray:
    """Share of each token among first draws, each of a prompt of its own."""
    chosen = [TokenChooser(sampling, number, prompt).choose(LOGITS) for number in range(draws)]
    return np.bincount(chosen, minlength=len(LOGITS)) / draws


@pytest.mark.proves("C14")
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1},
        {"temperature": 1.3, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 0.7, "repetition_penalty": 2.0},
    ],
)
def test_draws_have_the_probabilities_of_transformers(settings):
    prompt = [0, 4, 4]
    expected = probabilities_of_transformers(settings, prompt)
    np.testing.assert_allclose(shares(Sampling(**settings), prompt), expected, atol=0.03)


def probabilities_of_transformers(settings, prompt) -> np.ndarray:
    """By the processors that `generate` of transformers makes of the same settings."""
    tiny = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            vocab_size=len(LOGITS),
        )
    )
    config = GenerationConfig(do_sample=True, **({"top_k": 0} | settings))
    processors = tiny._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=len(prompt),
        logits_processor=LogitsProcessorList(),
    )
    scores = processors(torch.tensor([prompt]), LOGITS[None].clone())
    return scores[0].softmax(-1).numpy()


def test_greedy_is_the_default_and_draws_nothing():
    assert shares(Sampling(), [1], draws=3).tolist() == [1, 0, 0, 0, 0, 0]


def test_an_answer_is_penalised_for_its_own_tokens():
    chooser = TokenChooser(Sampling(repetition_penalty=3.0), 0, [])
    assert [chooser.choose(LOGITS) for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -0.1}, "--temperature -0.1: must be 0 or more"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "--top-p 0.0: must be above 0"),
        ({"temperature": 1.0, "top_k": -1}, "--top-k -1"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty 0.0"),
        ({"top_p": 0.9}, "--temperature 0 draws nothing"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError) as caught:
        Sampling(**settings)
    assert words in str(caught.value)
