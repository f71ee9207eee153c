"""A checkpoint of any layout resumes at any other: same weights, same moments, same data."""

from __future__ import annotations

import pytest
from checkpoint_jobs import content, differences, hop

STEPS = 2
TENSOR, PIPELINE = "--tensor-model-parallel-size=2", "--pipeline-model-parallel-size=2"
SEQUENCE, CONTEXT = "--sequence-parallel", "--context-parallel-size=2"
VIRTUAL = "--num-layers-per-virtual-pipeline-stage=1"
DISTRIBUTED, RESHARDABLE = "--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"
ASYNC, ALONE, PARALLEL_LOAD = (
    "--async-save",
    "--no-ckpt-fully-parallel-save",
    "--ckpt-fully-parallel-load",
)
MODULE_RATES = ["--mm-vision-tower-lr=2e-4", "--mm-projector-lr=5e-3"]
OVERLAPS = ["--overlap-grad-reduce", "--overlap-param-gather"]

LAYOUTS = {
    "one": (1, []),
    "dp2": (2, []),
    "dp4": (4, []),
    "tp2": (2, [TENSOR]),
    "tp2-sp": (2, [TENSOR, SEQUENCE]),
    "tp2-dp2": (4, [TENSOR]),
    "pp2": (2, [PIPELINE]),
    "pp2-uneven": (2, [PIPELINE, "--decoder-first-pipeline-num-layers=1"]),
    "pp2-vpp2": (2, [PIPELINE, VIRTUAL]),
    "pp2-vpp2-dp2": (4, [PIPELINE, VIRTUAL]),
    "cp2": (2, [CONTEXT]),
    "cp2-dp2": (4, [CONTEXT]),
    "tp2-cp2": (4, [TENSOR, CONTEXT, "--vision-parallel=data"]),
    "tp2-pp2": (4, [TENSOR, PIPELINE, SEQUENCE]),
}

CHAINS = {
    # name: (flags of the whole chain, [(layout, flags of this run)])
    "distributed": (
        [DISTRIBUTED, RESHARDABLE, *MODULE_RATES],
        [
            ("one", []),
            ("tp2-sp", [ASYNC]),
            ("pp2-vpp2", [ALONE]),
            ("dp4", [ASYNC, PARALLEL_LOAD, *OVERLAPS]),
            ("tp2-pp2", [PARALLEL_LOAD]),
            ("cp2-dp2", [ASYNC, PARALLEL_LOAD]),
            ("pp2-uneven", [ASYNC]),
        ],
    ),
    "replicated-bf16": (
        ["--bf16", *MODULE_RATES],
        [
            ("pp2-vpp2-dp2", [ASYNC]),
            ("tp2-dp2", [PARALLEL_LOAD]),
            ("tp2-cp2", [PARALLEL_LOAD, ASYNC]),
            ("pp2", [ALONE]),
            ("dp2", [PARALLEL_LOAD, ASYNC]),
        ],
    ),
    "data-parallel-only": (
        [DISTRIBUTED, "--bf16", *MODULE_RATES],
        [
            ("dp2", [ASYNC]),
            ("one", []),
            ("cp2-dp2", [PARALLEL_LOAD]),
            ("dp2", [ALONE, ASYNC]),
        ],
    ),
    "data-parallel-only-tp2": ([DISTRIBUTED], [("tp2-dp2", [ASYNC]), ("tp2", []), ("tp2-dp2", [])]),
}


def in_order(results):
    """The packs of all ranks' steps, each once, as (number, samples)."""
    return sorted({(number, tuple(ids)) for result in results for number, ids in result["packs"]})


ALWAYS = ("distributed", "data-parallel-only")


def chains():
    """Two run always, the others with the layouts of ``-m grid``."""
    rare = [pytest.mark.grid, pytest.mark.exhaustive]
    return [pytest.param(name, marks=[] if name in ALWAYS else rare) for name in CHAINS]


@pytest.mark.parametrize("chain", chains())
def test_every_move_keeps_weights_moments_and_data(pool, setup, tmp_path, chain):
    everywhere, runs = CHAINS[chain]
    arguments = setup.arguments(*everywhere, steps=STEPS * len(runs))
    unsaved = [flag for flag in arguments if flag != RESHARDABLE]
    continuous = pool.run(hop, unsaved, tmp_path / "start", tmp_path / "end")
    packs, before = [], None
    for number, (layout, flags) in enumerate(runs):
        world_size, layout_flags = LAYOUTS[layout]
        loaded, trained = tmp_path / f"loaded-{number}", tmp_path / f"trained-{number}"
        saving = [f"--save={tmp_path / 'run'}", f"--load={tmp_path / 'run'}"]
        saving += [f"--save-interval={STEPS}", f"--exit-interval={STEPS}"]
        results = pool.run(
            hop,
            [*arguments, *layout_flags, *flags, *saving],
            loaded,
            trained,
            world_size=world_size,
            timeout=180,
        )
        folder = f"iter_{number * STEPS:07d}"
        if before is not None:
            assert pool.run(differences, before / folder, loaded / folder)[0] == [], layout
        before = trained
        packs.append(in_order(results))
        done = slice(number * STEPS, (number + 1) * STEPS)
        for step, expected in zip(results[0]["steps"], continuous[0]["steps"][done], strict=True):
            assert step["iteration"] == expected["iteration"]
            assert step["samples"] == expected["samples"]
            rates = [name for name in expected if name.startswith("lr")]
            assert all(step[name] == expected[name] for name in rates), layout
            assert step["lm loss"] == pytest.approx(expected["lm loss"], rel=2e-2)
    assert [pack for run in packs for pack in run] == in_order(continuous)
    states = pool.run(content, before / f"iter_{STEPS * len(runs):07d}")[0]
    assert states["steps"] == {STEPS * len(runs)}
    moments = {name: size for name, (_, size) in states["tensors"].items() if "exp_avg." in name}
    assert moments and all(size > 0 for size in moments.values())
