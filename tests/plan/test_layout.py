"""Whole plans: the run that a seed describes, searches, and what to change."""

from dataclasses import replace
from functools import partial

import pytest
from tiny_model import tiny_config

from megatron_llava.config.model_yaml import fill_named_model
from megatron_llava.config.run import RunConfig
from megatron_llava.plan.assumptions import RESERVE
from megatron_llava.plan.layout import Machine, plan_layout
from megatron_llava.plan.recipe import recipe
from megatron_llava.plan.report import change_needed, listing, report
from megatron_llava.plan.search import Planner, change_to_four_bit, flags_of, nearest_change, search
from megatron_llava.plan.workload import SampleSizes, workload_of_samples
from megatron_llava.platform.gpus import GIB, GPUS

FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
SAMPLE = SampleSizes(image_size=(640, 480), tokens=2048, loss_tokens=None)


def workload(config):
    """The seed's samples where images have no base view, else some more tokens."""
    nobase = config.image.image_aspect_ratio == "nobase"
    return workload_of_samples(config, SAMPLE if nobase else replace(SAMPLE, tokens=None))


def planned(name: str, **changes) -> RunConfig:
    """What tools/plan.py makes of flags: bfloat16 on GPUs."""
    given = {"device": "cuda", "bf16": True, "data_path": "-", "lr": 1e-5, "train_iters": 100}
    config = RunConfig().with_values(given, "default").with_values(changes, "flag")
    return fill_named_model(config, name).with_adapter_defaults()


def two(memory: int) -> Machine:
    return Machine(gpus=2, memory=memory * GIB, kind=GPUS["rtx-4090"])


# Two RTX 4090; adapters of rank 32; 4 samples a pack, 4 packs a step on each; nobase, 6x6.
SEED = {
    "seq_length": 8192,
    "global_batch_size": 8,
    "image_aspect_ratio": "nobase",
    "image_grid_pinpoints": "(1x1),...,(6x6)",
    "lora_rank": 32,
    "lr_warmup_fraction": 0.03,
}


@pytest.mark.proves("D7", "E11")
def test_the_adapters_of_a_7b_fit_two_gpus_of_48_gib_with_recomputation():
    config = planned("llava-next-vicuna-7b", **SEED, **FULL)
    layout = plan_layout(config, two(48), workload)
    assert layout.fits
    stage = layout.stages[0]
    # 6.74e9 and 0.32e9 parameters in bfloat16, and 80e6 and 21e6 that learn.
    assert stage.weights / 1e9 == pytest.approx(2 * (7.063 - 0.013 + 0.080), rel=0.005)
    assert stage.gradients / 1e6 == pytest.approx(4 * 100.9, rel=0.01)
    assert stage.optimizer == 3 * stage.gradients
    steps = recipe(config, 2, workload(config), 474_080)
    assert (steps.samples_per_step, steps.steps, steps.warmup) == (32, 14_815, 445)
    text = report(layout, workload(config).said, steps)
    assert "14,815 steps of 474,080 samples at 32 a step; 445 of the steps are warm-up" in text
    assert "an image has at most (36) x 576 = 20,736 tokens beside newlines (nobase, " in text
    next_config = planned("llava-onevision-qwen2-7b", seq_length=8192, **FULL)
    other = report(plan_layout(next_config, two(48), workload), "", None)
    assert "at most about (9 + 1) x 729 = 7,290 tokens beside newlines (anyres_max_9" in other
    seconds = steps.steps * layout.time.total
    assert f" steps, {2 * seconds / 3600:,.0f} GPU-hours\n" in text
    assert "not measured" in text and "fits: " in text


def test_what_stands_behind_the_projector_is_planned():
    size = {"seq_length": 8192, "mm_tunable_parts": ("mm_mlp_adapter",)}
    more = {
        "temporal encoder": {"temporal_encoder_layers": 2},
        "cross-image attention": {"cross_image_attention": True},
        "alignment loss": {"align_loss_coeff": 1.0},
    }
    without = plan_layout(planned("llava-next-vicuna-7b", **size), two(80), workload)
    for name, changes in more.items():
        config = planned("llava-next-vicuna-7b", **size, **changes)
        layout = plan_layout(config, two(80), workload)
        assert set(layout.flops.parts) - set(without.flops.parts) == {name}
        assert layout.flops.useful - without.flops.useful == layout.flops.parts[name].total > 0
        assert layout.stages[0].vision > without.stages[0].vision
        assert f"\n  {name} " in report(layout, "", None)


def test_a_decoder_that_does_not_run_costs_nothing():
    alone = {"align_loss_coeff": 1.0, "text_loss_coeff": 0.0}
    size = {"seq_length": 8192, "mm_tunable_parts": ("mm_mlp_adapter",), "global_batch_size": 8}
    layout = plan_layout(planned("llava-next-vicuna-7b", **size, **alone), two(80), workload)
    assert layout.flops.parts["decoder"].total == layout.flops.parts["output layer"].total == 0
    assert layout.stages[0].activations == layout.stages[0].logits == 0
    on_stages = {**alone, "pipeline_model_parallel_size": 2}
    layout = plan_layout(planned("llava-next-vicuna-7b", **size, **on_stages), two(80), workload)
    assert layout.flops.parts["decoder"].total > 0 < layout.stages[0].activations


@pytest.mark.parametrize(
    "changes",
    [{"transformer_impl": "transformer_engine"}, {"fp8_format": "hybrid", "fp8_emulation": True}],
    ids=str,
)
def test_what_was_not_counted_is_said(changes):
    remark = "those of --transformer-impl local without FP8"
    texts = []
    for more in ({}, changes):
        config = planned("llava-next-vicuna-7b", seq_length=8192, **more)
        texts.append(report(plan_layout(config, two(48), workload), "", None))
    assert [remark in text for text in texts] == [False, True]


def test_what_to_change_for_two_gpus_of_24_gib():
    config = planned("llava-next-vicuna-7b", **SEED)
    planner = Planner(config, workload)
    assert not plan_layout(config, two(24), workload).fits
    found = nearest_change(planner, two(24))
    assert found.fits
    words = change_needed(found, config, two(24))
    assert words.startswith("does not fit; nearest change is --recompute-granularity full")


@pytest.mark.proves("D7")
def test_frozen_weights_in_4_bits_are_an_answer_for_two_gpus_of_24_gib():
    """The run of seed 000; with 16-bit weights it is 6 GiB larger."""
    config = planned("llava-next-vicuna-7b", **SEED)
    found = change_to_four_bit(Planner(config, workload), two(24))
    assert found.fits and found.config.lora.load_in_4bit
    words = change_needed(None, config, two(24), found)
    assert words.startswith("does not fit; the frozen weights of the decoder's layers can be")
    assert "--load-in-4bit --bnb-4bit-use-double-quant --recompute-granularity full" in words
    whole = plan_layout(planned("llava-next-vicuna-7b", **SEED, **FULL), two(24), workload)
    stage, of_whole = found.stages[0], whole.stages[0]
    # 6.476e9 weights of 32 layers at 4.127 bits instead of 16; the rest is as it was.
    saved = of_whole.weights - stage.weights
    assert saved == pytest.approx(6.476e9 * (16 - 4.127) / 8, rel=1e-3)
    assert stage.loading == of_whole.weights + of_whole.gradients
    assert "(loading, before all that)" in report(found, "", None)
    assert "loading" not in report(whole, "", None)


@pytest.mark.parametrize("changes", [{"lora_rank": 0}, {"load_in_4bit": False}], ids=str)
def test_four_bits_are_offered_to_adapters_only_and_if_not_refused(changes):
    config = planned("llava-next-vicuna-7b", **{**SEED, **changes})
    assert change_to_four_bit(Planner(config, workload), two(24)) is None


def test_more_gpus_where_no_flag_helps():
    config = planned("llava-next-qwen1.5-110b", seq_length=8192, global_batch_size=256)
    machine = Machine(gpus=8, memory=80 * GIB, kind=None)
    found = nearest_change(Planner(config, workload), machine)
    assert found.machine.gpus > 8 and found.fits
    assert f"nearest change is {found.machine.gpus} GPUs of 80 GiB and --" in change_needed(
        found, config, machine
    )


def test_nothing_helps_where_one_layer_is_too_large():
    config = planned("llava-next-vicuna-7b", seq_length=8192, global_batch_size=256)
    machine = Machine(gpus=1, memory=RESERVE, kind=None)
    assert nearest_change(Planner(config, workload), machine) is None
    assert "no layout does" in change_needed(None, config, machine)


def test_a_search_lists_what_fits_best_first_and_leaves_given_flags():
    config = planned("llava-next-vicuna-7b", seq_length=8192, tensor_model_parallel_size=2)
    machine = Machine(gpus=8, memory=80 * GIB, kind=GPUS["h100-sxm"])
    found = search(Planner(config, workload), machine)
    fitting = [layout for layout in found if layout.fits]
    assert fitting and found[: len(fitting)] == fitting
    times = [layout.time.total for layout in fitting]
    assert times == sorted(times)
    for layout in fitting:
        assert layout.config.parallel.tensor_model_parallel_size == 2
    lines = listing(found, config, 3).splitlines()
    assert len(lines) == 3 and all("GiB" in line and " s  --" in line for line in lines)


def test_the_flags_of_a_layout_make_it():
    from megatron_llava.config.cli import parse_args

    config = planned("llava-next-vicuna-7b", seq_length=8192)
    machine = Machine(gpus=4, memory=80 * GIB, kind=GPUS["h100-sxm"])
    for layout in search(Planner(config, workload), machine)[:10]:
        read = parse_args(flags_of(layout, config))
        for name in read.explicit:
            assert read.get(name) == layout.config.get(name)


def test_every_kind_of_memory_shrinks_with_what_shrinks_it():
    def stage(**changes):
        config = planned("llava-next-vicuna-7b", seq_length=8192, **changes)
        machine = Machine(gpus=8, memory=80 * GIB, kind=None)
        return plan_layout(config, machine, workload).stages[0]

    plain = stage()
    assert stage(use_distributed_optimizer=True).optimizer < plain.optimizer / 7
    assert stage(tensor_model_parallel_size=2).weights < plain.weights * 0.51
    assert stage(recompute_activations=True).activations < plain.activations
    assert stage(**FULL).activations < plain.activations / 8
    assert stage(context_parallel_size=2).activations < plain.activations * 0.6
    assert stage(mm_tunable_parts=("mm_mlp_adapter",)).optimizer < plain.optimizer / 300
    assert stage(mm_tunable_parts=("mm_mlp_adapter", "mm_language_model")).vision < plain.vision / 5


def test_optimizer_state_shrinks_by_its_types_and_by_what_the_host_holds():
    def optimizer(**changes):
        given = {"seq_length": 8192, "use_distributed_optimizer": True, **changes}
        machine = Machine(gpus=8, memory=80 * GIB, kind=None)
        config = planned("llava-next-vicuna-7b", **given)
        return plan_layout(config, machine, workload).stages[0].optimizer

    plain, aware = optimizer(), {"use_precision_aware_optimizer": True}
    parameters = plain // 12
    assert optimizer(**aware) == parameters * (4 + 4 + 4)
    small = {"main_params_dtype": "fp16", "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "fp8"}
    assert optimizer(**aware, **small) == parameters * (2 + 2 + 1)
    assert optimizer(**aware, optimizer_cpu_offload=True) == 0
    half = optimizer(**aware, optimizer_cpu_offload=True, optimizer_offload_fraction=0.5)
    assert half == parameters * 8


def test_balanced_stages_are_planned_as_the_run_places_them():
    changes = {"seq_length": 8192, "pipeline_model_parallel_size": 4}
    machine = Machine(gpus=4, memory=80 * GIB, kind=None)
    even = plan_layout(planned("llava-next-vicuna-7b", **changes), machine, workload)
    config = planned("llava-next-vicuna-7b", **changes, pipeline_balance="auto")
    auto = plan_layout(config, machine, workload)
    assert auto.flops.useful == even.flops.useful
    assert auto.flops.slowest_stage < even.flops.slowest_stage
    assert auto.stages[0].weights < even.stages[0].weights


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (SampleSizes(image_size=(640, 480), tokens=100, loss_tokens=None), "leaves no text"),
        (
            SampleSizes(image_size=None, tokens=100, loss_tokens=101),
            "--loss-tokens-per-sample 101 are more than the 100 tokens of text",
        ),
        (SampleSizes(image_size=None, tokens=9000, loss_tokens=None), "--seq-length 8192 is less"),
    ],
)
def test_samples_that_cannot_be(sample, message):
    config = planned("llava-next-vicuna-7b", seq_length=8192)
    with pytest.raises(ValueError, match=message):
        workload_of_samples(config, sample)


def test_tokens_and_views_are_those_of_the_image():
    config = planned("llava-next-vicuna-7b", seq_length=8192)
    found = workload_of_samples(
        config, SampleSizes(image_size=(672, 672), tokens=None, loss_tokens=10)
    )
    # A base view and 2x2 tiles of 576, a newline behind each of 48 rows, 256 of text: 3,184.
    assert "packs of 2 samples of 3184 tokens, 2928 of them from 5 views" in found.said
    assert (found.largest.views, found.largest.loss_rows) == (10, 20)
    assert found.sizes.attended == 2 * 3184**2


@pytest.mark.parametrize(
    ("window", "max_views", "packs"),
    [
        (0, None, [8]),
        (1, None, [1]),
        (8, None, [8]),
        (20, None, [8, 8, 4]),
        (0, 7, [7]),
        (0, 9, [8]),
        (20, 6, [6, 6, 6, 2]),
    ],
)
def test_a_window_and_views_bound_the_samples_of_a_pack(window, max_views, packs):
    """Samples of 1,000 tokens, 576 of them of one view."""
    bounds = {"packing_window": window, "max_views_per_pack": max_views}
    square = {"image_aspect_ratio": "square", "mm_patch_merge_type": "flat"}
    config = planned("llava-next-vicuna-7b", seq_length=8192, **bounds, **square)
    sample = SampleSizes(image_size=(336, 336), tokens=1000, loss_tokens=100)
    found = workload_of_samples(config, sample)
    assert found.samples_per_pack == sum(packs) / len(packs)
    most, sizes = max(packs), found.sizes
    assert (found.largest.samples, found.largest.views) == (most, most)
    assert (found.largest.loss_rows, found.largest.text_tokens) == (100 * most, 424 * most)
    assert (sizes.packs, sizes.views, sizes.rows) == (len(packs), sum(packs), 1000 * sum(packs))
    assert sizes.sample_rows == 1000 * sum(count**2 for count in packs)
    assert sizes.sample_labels == 100 * sum(count**2 for count in packs)


def test_a_sample_with_more_views_than_a_pack_may_have():
    config = planned("llava-next-vicuna-7b", seq_length=8192, max_views_per_pack=4)
    with pytest.raises(ValueError, match="--max-views-per-pack 4 is less than the 5 views"):
        workload_of_samples(config, replace(SAMPLE, image_size=(672, 672), tokens=None))


@pytest.mark.proves("D7")
def test_the_steps_of_the_seed_are_those_of_packs_of_one_sample():
    seed = SEED | {"global_batch_size": 32, "packing_window": 1, "seq_length": 32768}
    config = planned("llava-onevision-qwen2-7b", **seed, **FULL)
    found = recipe(
        config,
        2,
        workload_of_samples(
            config, SampleSizes(image_size=(640, 480), tokens=None, loss_tokens=None)
        ),
        474_080,
    )
    assert found is not None and (found.steps, found.warmup) == (14_815, 445)


def test_a_tiny_model_needs_little_beside_the_reserve():
    config = tiny_config(device="cuda", seq_length=512, data_path="-", lr=1.0, train_iters=1)
    sample = SampleSizes(image_size=None, tokens=32, loss_tokens=None)
    machine = Machine(gpus=1, memory=24 * GIB, kind=None)
    layout = plan_layout(config, machine, partial(workload_of_samples, sample=sample))
    assert RESERVE < layout.most < RESERVE + 2**26 and layout.time is None
