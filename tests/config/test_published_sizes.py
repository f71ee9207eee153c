"""Sizes on the published model cards, by the card that we write ourselves."""

import pytest

from megatron_llava.config.presets import model_values
from megatron_llava.config.run import RunConfig
from megatron_llava.observe.model_card import part_sizes

MEBI = 2**20


def sizes(model: str) -> dict[str, int]:
    return part_sizes(RunConfig().with_values(model_values(model), "flag"))


@pytest.mark.proves("B4")
@pytest.mark.parametrize(
    ("model", "hidden", "unit", "card"),
    [
        ("vicuna-7b", 4096, 1e6, 20.98),  # the card: 21M
        ("vicuna-13b", 5120, 1e6, 31.47),  # 31.5M
        ("yi-34b", 7168, 1e6, 58.73),  # 58.7M
        # Two cards count in units of 2^20: 20.0M and 72.0M.
        ("llama-3-8b", 4096, MEBI, 20.01),
        ("qwen1.5-72b", 8192, MEBI, 72.02),
        ("qwen1.5-110b", 8192, MEBI, 72.02),
    ],
)
def test_connectors(model, hidden, unit, card):
    vision = 1024
    formula = vision * hidden + hidden + hidden**2 + hidden
    assert sizes(f"llava-next-{model}")["mm_mlp_adapter"] == formula
    assert round(formula / unit, 2) == card


@pytest.mark.proves("B8")
@pytest.mark.parametrize(
    ("model", "digits", "card"),
    [
        ("vicuna-7b", 2, 7.06),
        ("vicuna-13b", 2, 13.35),
        ("yi-34b", 2, 34.75),
        ("llama-3-8b", 2, 8.35),
        ("qwen1.5-72b", 1, 72.7),
        ("qwen1.5-110b", 1, 111.6),  # the card says 111.5, which counts the LLM as 111.0
        ("qwen1.5-0.5b+so400m-384", 1, 0.9),
    ],
)
def test_totals(model, digits, card):
    total = sum(sizes(f"llava-next-{model}").values()) / 1e9
    # Cards add up rounded sizes; 0.9B is all that is said of the smallest.
    assert total == pytest.approx(card, rel=0.002) or round(total, digits) == card
