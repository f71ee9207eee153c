"""Rules about adapters, by the flags and numbers in their messages."""

import pytest

from megatron_llava.config.cli import parse_args
from megatron_llava.config.training import TUNABLE_PARTS
from megatron_llava.config.validate import validate

SAVE = {"save": "out", "save_interval": 5}
TE = {"transformer_impl": "transformer_engine", "device": "cuda"}


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_rank": 32},
        {
            "lora_rank": 8,
            "lora_alpha": 0.5,
            "lora_dropout": 0.0,
            "lora_target_modules": ("q_proj",),
        },
        {"lora_rank": 8, "mm_tunable_parts": ("mm_language_model",)},
        {"lora_rank": 8, **SAVE, "load": "out", "pretrained_checkpoint": "in"},
        {"lora_rank": 8, "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    ],
)
def test_valid_adapters_pass(make_config, changes):
    validate(make_config(**changes), 1)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"lora_alpha": 16.0}, "--lora-alpha is about adapters|--lora-rank is 0"),
        ({"lora_target_modules": ("q_proj",)}, "--lora-target-modules is about adapters"),
        ({"load_in_4bit": True}, "--load-in-4bit is about the frozen weights|--lora-rank is 0"),
        ({"bnb_4bit_quant_type": "fp4"}, "--bnb-4bit-quant-type is about --load-in-4bit"),
        (
            {"lora_rank": 8, "bnb_4bit_use_double_quant": True},
            "--bnb-4bit-use-double-quant is about --load-in-4bit",
        ),
        ({"lora_rank": -1}, "--lora-rank: -1"),
        ({"lora_rank": 8, "lora_dropout": 1.0}, "--lora-dropout: 1.0"),
        ({"lora_rank": 8, "lora_target_modules": ()}, "--lora-target-modules is empty|down_proj"),
        ({"lora_rank": 8, "lora_target_modules": ("lm_head",)}, "'lm_head'|o_proj"),
        ({"lora_rank": 8, "lora_target_modules": ("q_proj", "q_proj")}, "q_proj 2 times"),
        ({"lora_rank": 8, **TE}, "--lora-rank 8|--transformer-impl local"),
        (
            {"lora_rank": 8, "mm_tunable_parts": ("mm_mlp_adapter",)},
            "--lora-rank 8|--mm-tunable-parts mm_mlp_adapter",
        ),
        ({"lora_rank": 8, **SAVE}, "--lora-rank 8|--save out|--pretrained-checkpoint"),
        ({"lora_rank": 8, "load": "in"}, "--lora-rank 8|--load in|--pretrained-checkpoint"),
    ],
)
def test_adapters_that_cannot_be_are_refused(make_config, changes, parts):
    with pytest.raises(ValueError) as caught:
        validate(make_config(**changes), 1)
    for part in parts.split("|"):
        assert part in str(caught.value)


def test_the_tower_is_frozen_beside_adapters_unless_it_is_named():
    plain = parse_args(["--lora-rank=4"]).training.mm_tunable_parts
    assert plain == ("mm_mlp_adapter", "mm_language_model")
    assert parse_args([]).training.mm_tunable_parts == TUNABLE_PARTS
    named = f"--mm-tunable-parts={','.join(TUNABLE_PARTS)}"
    assert parse_args(["--lora-rank=4", named]).training.mm_tunable_parts == TUNABLE_PARTS
