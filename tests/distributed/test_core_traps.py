"""What Megatron-core 0.16 gets wrong in pipelines, and what keeps a run out of it."""

import pytest
from distributed_jobs import train
from distributed_layouts import Layout, distributed

ONE_SAMPLE_PACKS = "--packing-window=1"
"""Packs of very different lengths in one step."""


def steps_of(pool, setup, layout, *flags):
    arguments = setup.arguments(*flags, *layout.flags, model="deep", steps=3)
    return pool.run(train, arguments, world_size=layout.world_size)[0]["steps"]


def assert_same_gradients(steps, expected):
    for step, reference in zip(steps, expected, strict=True):
        assert step["lm loss"] == pytest.approx(reference["lm loss"], rel=1e-4)
        assert step["grad norm"] == pytest.approx(reference["grad norm"], rel=1e-4)


def test_virtual_stages_on_two_ranks_without_overlap(pool, setup, one_rank):
    """Trap a: core then computes right losses and wrong gradients, and says nothing."""
    layout = Layout(pp=2, vpp_layers=2, no_p2p_overlap=True)
    with pytest.raises(AssertionError, match="size 3 or more, not 2"):
        steps_of(pool, setup, layout)
    expected = one_rank(model="deep", steps=3)["steps"]
    assert_same_gradients(steps_of(pool, setup, Layout(pp=2, vpp_layers=2)), expected)


def test_outputs_are_not_emptied_while_gloo_sends_them(pool, setup):
    """Trap b: gradients then vary from run to run."""
    runs = [steps_of(pool, setup, Layout(pp=2, vpp_layers=1)) for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


@distributed(
    Layout(pp=4, vpp_layers=1), Layout(pp=4, vpp_layers=1, no_p2p_overlap=True), Layout(pp=4)
)
def test_packs_of_other_lengths_over_four_stages(pool, setup, one_rank, layout):
    """Trap c: core hangs where it sends lengths ahead. A hang fails in 60 s."""
    expected = one_rank(ONE_SAMPLE_PACKS, model="deep", steps=3)["steps"]
    assert_same_gradients(steps_of(pool, setup, layout, ONE_SAMPLE_PACKS), expected)


def test_what_keeps_runs_out_of_the_traps(setup):
    from megatron_llava.config.cli import parse_args
    from megatron_llava.models.core_config import language_transformer_config
    from megatron_llava.train import prepare

    core = language_transformer_config(prepare(parse_args(setup.arguments())))
    assert not core.deallocate_pipeline_outputs
    assert not core.variable_seq_lengths
