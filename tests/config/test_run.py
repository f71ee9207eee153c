import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.config.model import LanguageConfig
from megatron_llava.config.parallel import PrecisionConfig
from megatron_llava.config.run import RunConfig, all_fields, group_classes
from megatron_llava.config.training import OptimizationConfig, RecomputeConfig


def test_every_field_has_a_default_of_its_own_type_within_bounds():
    for spec in all_fields().values():
        spec.check_choice(spec.default)
        spec.check_bounds(spec.default)
        if spec.default is None:
            assert spec.optional, spec.name
        else:
            assert spec.convert(spec.default) == spec.default


def test_help_lines_are_lines():
    for spec in all_fields().values():
        assert spec.info.help and "\n" not in spec.info.help
        assert not spec.info.help.endswith("."), spec.name


def test_model_groups_and_only_they_come_from_checkpoints():
    for spec in all_fields().values():
        from_model = spec.group in ("language", "vision", "image")
        assert (spec.info.from_checkpoint != "no") == from_model, spec.name


def test_groups_are_frozen():
    for group in group_classes():
        config = getattr(RunConfig(), group)
        name = dataclasses.fields(config)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, None)


def test_with_values_changes_a_copy_and_records_the_source():
    config = RunConfig()
    changed = config.with_values({"lr": 1e-3, "seed": 7}, "file").with_values({"lr": 1e-2}, "flag")
    assert (changed.optimizer.lr, changed.training.seed) == (1e-2, 7)
    assert changed.sources == {"lr": "flag", "seed": "file"}
    assert changed.explicit == {"lr", "seed"}
    assert changed.with_values({"hidden_size": 8}, "checkpoint").explicit == {"lr", "seed"}
    assert config.sources == {} and config.optimizer.lr is None


@given(
    tensor=st.integers(1, 8),
    pipeline=st.integers(1, 8),
    data=st.integers(1, 8),
    steps=st.integers(1, 8),
)
def test_batch_arithmetic(tensor, pipeline, data, steps):
    config = RunConfig().with_values(
        {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}, "flag"
    )
    world = tensor * pipeline * data
    assert config.data_parallel_size(world) == data
    assert config.global_batch_size(world) == data
    assert config.num_microbatches(world) == 1
    config = config.with_values({"global_batch_size": data * steps}, "flag")
    assert config.num_microbatches(world) == steps


@given(vocab=st.integers(1, 200_000), divisor=st.integers(1, 256), tensor=st.integers(1, 16))
def test_padded_vocab_size_is_the_next_multiple(vocab, divisor, tensor):
    language = LanguageConfig(vocab_size=vocab, make_vocab_size_divisible_by=divisor)
    padded = language.padded_vocab_size(tensor)
    assert padded % (divisor * tensor) == 0
    assert vocab <= padded < vocab + divisor * tensor


def test_padded_vocab_size_of_published_models():
    assert LanguageConfig(vocab_size=32000).padded_vocab_size(1) == 32000
    assert LanguageConfig(vocab_size=151936).padded_vocab_size(4) == 152064


def test_head_defaults():
    language = LanguageConfig(hidden_size=896, num_attention_heads=14)
    assert (language.query_groups, language.head_width) == (14, 64)
    language = dataclasses.replace(language, num_query_groups=2, kv_channels=128)
    assert (language.query_groups, language.head_width) == (2, 128)
    assert LanguageConfig().head_width is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, False),
        ({"accumulate_allreduce_grads_in_fp32": True}, True),
        ({"bf16": True}, True),
        ({"bf16": True, "grad_reduce_in_bf16": True}, False),
    ],
)
def test_reduce_grads_in_fp32(flags, expected):
    assert PrecisionConfig(**flags).reduce_grads_in_fp32 is expected


def test_warmup_and_decay():
    assert OptimizationConfig(lr_warmup_iters=5).warmup_iters(100) == 5
    assert OptimizationConfig(lr_warmup_fraction=0.03).warmup_iters(5198) == 156
    assert OptimizationConfig(lr_warmup_fraction=0.0).warmup_iters(100) == 0
    short = OptimizationConfig(lr_warmup_fraction=0.5, lr_decay_iters=9)
    assert (short.decay_iters(100), short.warmup_iters(100)) == (9, 5)


def test_recompute_granularity():
    assert RecomputeConfig().granularity is None
    assert RecomputeConfig(recompute_activations=True).granularity == "selective"
    assert RecomputeConfig(recompute_granularity="full").granularity == "full"
