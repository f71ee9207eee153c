"""Cards of made-up runs, against the sizes on the published cards."""

import json
from dataclasses import replace

import pytest

from megatron_llava.config.cli import config_to_yaml
from megatron_llava.config.presets import model_values
from megatron_llava.config.run import RunConfig
from megatron_llava.observe.model_card import (
    Stage,
    model_card,
    part_sizes,
    read_stage,
    trainable_module,
)


def config(name="llava-next-vicuna-7b", **changes):
    training = {
        "lr": 2e-5,
        "mm_vision_tower_lr": 2e-6,
        "train_iters": 100,
        "global_batch_size": 64,
        "seq_length": 8192,
        "data_path": "absent",
        "bf16": True,
    }
    return RunConfig().with_values({**model_values(name), **training, **changes}, "flag")


def row(card, key, section=None):
    """The value of one row."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    (value,) = [line[2] for line in lines if line[1] == key and section in (None, line[0])]
    return value


@pytest.mark.proves("E10")
@pytest.mark.parametrize(
    ("name", "total", "connector", "language"),
    [
        # The published cards: 7.06B, 21M and 6.74B; 13.35B, 31.5M and 13B; 34.75B, 58.7M and 34.39B
        ("llava-next-vicuna-7b", "7.06B", "20.98M", "6.74B"),
        ("llava-next-vicuna-13b", "13.35B", "31.47M", "13.02B"),
        ("llava-next-yi-34b", "34.75B", "58.73M", "34.39B"),
        # 8.35B, 20.0M and 8.03B; 0.9B of Qwen1.5-0.5B with SO400M
        ("llava-next-llama-3-8b", "8.35B", "20.98M", "8.03B"),
        ("llava-next-qwen1.5-0.5b+so400m-384", "879.2M", "2.23M", "464.0M"),
    ],
)
def test_sizes_are_those_of_the_published_cards(name, total, connector, language):
    card = model_card("A model", [Stage(config(name), {}, None)])
    found = [row(card, key, "Model size") for key in ("Total", "Connector", "LLM")]
    assert found == [total, connector, language]
    if "so400m" not in name:
        assert row(card, "Vision encoder", "Model size") == "303.5M"


@pytest.mark.proves("E10")
def test_views_are_written_as_on_the_cards():
    card = model_card("A model", [Stage(config(), {}, None)])
    assert row(card, "Pattern") == (
        "anyres: 336 x [(1,2), (2,1), (2,2), (3,1), (1,3)], columns and rows"
    )
    assert row(card, "Tokens per view") == "576"


def steps(*pairs):
    """Records of (last step, samples a second), each step taking two seconds."""
    return {
        step: {"iteration": step, "lm loss": 1.5, "samples/s": rate, "s/step": 2.0}
        for step, rate in pairs
    }


@pytest.mark.proves("E10", "D19")
def test_stages_tell_what_was_trained_and_how_long():
    counts = {"samples": 558_128, "images": 558_128, "supervised_tokens": 7_000_000}
    first = config(mm_tunable_parts=("mm_mlp_adapter",), lr=1e-3, mm_vision_tower_lr=None)
    stages = [
        Stage(first, steps((1, 30.0), (100, 32.0)), counts),
        Stage(config(), steps((900, 20.0)), None),
    ]
    card = model_card("A model", stages, ["8 A100-80G", "16 A100-80G"])
    assert card.startswith("# A model\n\n| Section | Key | Value |\n")
    assert row(card, "Training data", "Stage-1").startswith("558.1K samples, 558.1K images, 7.00M")
    assert row(card, "Trainable module", "Stage-1") == "Connector"
    assert row(card, "Trainable module", "Stage-2") == "Full model"
    assert row(card, "Learning rate", "Stage-1") == "0.001"
    assert row(card, "Learning rate", "Stage-2") == "LLM, Connector: 2e-05 / Vision encoder: 2e-06"
    assert row(card, "Batch size", "Stage-2") == "64 packs of 8,192 positions"
    alone = model_card("A", [Stage(config(global_batch_size=None), steps((1, 2.0)), None)], [])
    assert "1 pack of 8,192 positions per data-parallel rank" in alone
    # 2 seconds at 30 and 198 at 32 samples a second; 1800 seconds at 20.
    assert row(card, "Samples seen", "Stage-1") == "6.40K"
    assert row(card, "# samples seen") == "42.40K = 6.40K + 36.00K"
    assert row(card, "Compute (GPUs x hours)", "Stage-2") == "16 A100-80G x 0.5"


@pytest.mark.proves("F2")
def test_a_card_ends_with_a_notice_of_licences():
    notice = model_card("A model", [Stage(config(), {}, None)]).split("\n\n")[-1]
    assert notice.startswith("## Licences\n")
    for word in ("Data", "towers", "language models", "licences", "terms of services"):
        assert word in notice


def test_adapters_are_named_and_not_counted():
    adapted = config(lora_rank=32, mm_tunable_parts=("mm_mlp_adapter", "mm_language_model"))
    assert trainable_module(adapted) == "Connector, adapters of the LLM (rank 32)"
    assert part_sizes(adapted) == part_sizes(config())


@pytest.mark.parametrize(
    ("rates", "parts", "text"),
    [
        ({}, None, "2e-05"),
        ({"mm_projector_lr": 2e-5}, None, "2e-05"),
        ({"mm_projector_lr": 1e-3}, None, "LLM, Vision encoder: 2e-05 / Connector: 0.001"),
        ({"mm_projector_lr": 1e-3}, ("mm_language_model",), "2e-05"),
        (
            {"mm_projector_lr": 1e-3},
            ("mm_vision_tower", "mm_mlp_adapter"),
            "Connector: 0.001 / Vision encoder: 2e-05",
        ),
    ],
)
def test_every_part_that_learns_has_a_rate(rates, parts, text):
    trained = {} if parts is None else {"mm_tunable_parts": parts}
    run = config(**{"mm_vision_tower_lr": None, **rates, **trained})
    assert row(model_card("A model", [Stage(run, {}, None)]), "Learning rate") == text


@pytest.mark.proves("E10", "E11")
def test_a_run_is_read_from_its_folder(tmp_path):
    log = tmp_path / "log.jsonl"
    run = config(log_file=str(log), data_path=str(tmp_path / "store"))
    (tmp_path / "run.yaml").write_text(config_to_yaml(run))
    (tmp_path / "store.json").write_text(json.dumps({"counts": {"samples": 5}}))
    lines = [*steps((10, 1.0)).values(), {"iteration": 10, "valid loss": 1.0}]
    # The run was interrupted at step 20 and resumed at 10.
    lines += [*steps((20, 9.0)).values(), *steps((20, 3.0)).values()]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    stage = read_stage(tmp_path)
    assert stage.counts == {"samples": 5} and stage.last_step == 20
    assert stage.total("samples/s") == 2 * 10 * (1 + 3)
    assert config_to_yaml(replace(stage.config, sources=run.sources)) == config_to_yaml(run)
    with pytest.raises(ValueError, match=r"absent/run\.yaml: no such file; name a folder"):
        read_stage(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"absent\.jsonl: no such file"):
        read_stage(tmp_path, tmp_path / "absent.jsonl")
    log.write_text("{}\nno json\n")
    with pytest.raises(ValueError, match=r"log\.jsonl:2: not a line of a log"):
        read_stage(tmp_path)
