"""A run that starts from a Hugging Face folder is the run that starts from its conversion."""

import filecmp
import shutil

import numpy as np
import pytest
from adapter_jobs import beside_base
from distributed_jobs import train

from megatron_llava.parallel.checkpoint_directory import SIDE_FILES

LORA = ("--lora-rank=4", "--lora-dropout=0")
TP2 = ("--tensor-model-parallel-size=2", "--sequence-parallel")
VPP2 = ("--pipeline-model-parallel-size=2", "--num-virtual-stages-per-pipeline-rank=2")
RARE = [pytest.mark.grid, pytest.mark.exhaustive]


def hf_folder(setup, model="plain"):
    setup.checkpoint(model)
    return setup.folder / f"{model}-hf"


def from_hf(setup, *flags, model="plain", **options):
    """The command line of `Setup.arguments`, reading the folder that its checkpoint came from."""
    arguments = setup.arguments(*flags, model=model, **options)
    folder = hf_folder(setup, model)
    place = next(i for i, flag in enumerate(arguments) if flag.startswith("--pretrained"))
    return [*arguments[:place], f"--load-hf={folder}", *arguments[place + 1 :]]


@pytest.mark.parametrize(
    ("model", "flags", "ranks"),
    [
        ("plain", (), 1),
        ("plain", (*TP2, "--bf16", "--image-separator"), 2),
        ("tied", ("--pipeline-model-parallel-size=2",), 2),
        pytest.param("deep", (*VPP2, "--vision-parallel=data"), 2, marks=RARE),
        ("plain", (*LORA, *TP2), 2),
        ("dinov2", (*TP2, "--vision-parallel=data"), 2),
    ],
    ids=["one", "tp2-bf16", "tied-pp2", "vpp2", "lora", "dinov2"],
)
def test_losses_and_weights_are_those_of_a_converted_start(pool, setup, model, flags, ranks):
    options = {"model": model, "steps": 3}
    expected = pool.run(
        train, setup.arguments(*flags, **options), world_size=ranks, with_shards=True
    )
    found = pool.run(train, from_hf(setup, *flags, **options), world_size=ranks, with_shards=True)
    assert found[0]["steps"] == expected[0]["steps"]
    for rank in range(ranks):
        for wanted, shard in zip(expected[rank]["shards"], found[rank]["shards"], strict=True):
            assert wanted.key == shard.key
            assert np.array_equal(wanted.array, shard.array), wanted.key


@pytest.fixture(scope="module")
def folders(pool, setup, tmp_path_factory):
    """A copy of the Hugging Face folder, and a run from it saved after one of three steps."""
    folder = tmp_path_factory.mktemp("load-hf")
    shutil.copytree(hf_folder(setup), folder / "hf")
    arguments = run_from(setup, folder)
    pool.run(train, [*arguments, "--exit-interval=1"])
    return folder


def run_from(setup, folder):
    saving = (f"--save={folder / 'run'}", f"--load={folder / 'run'}", "--save-interval=1")
    return [*from_hf(setup, *saving, steps=3), f"--load-hf={folder / 'hf'}"]


def test_what_lies_beside_its_checkpoints_is_what_a_conversion_writes(setup, folders):
    for name in SIDE_FILES:
        converted, found = setup.root / name, folders / "run" / name
        if converted.is_dir():
            names = sorted(path.name for path in converted.iterdir())
            assert names == sorted(path.name for path in found.iterdir())
            assert filecmp.cmpfiles(converted, found, names, shallow=False)[0] == names
        else:
            assert filecmp.cmp(converted, found, shallow=False), name
    assert not (folders / "run" / "hf.partial").exists()


def test_the_run_is_resumed_without_the_folder(pool, setup, folders):
    expected = pool.run(train, from_hf(setup, steps=3))[0]["steps"]
    (folders / "hf").rename(folders / "away")
    try:
        found = pool.run(train, run_from(setup, folders))[0]
    finally:
        (folders / "away").rename(folders / "hf")
    assert found["steps"] == expected[1:]
    assert any("resumed" in message for message in found["messages"])


def test_adapters_belong_to_the_folder(pool, setup, tmp_path):
    from safetensors.torch import load_file, save_file

    saving = (f"--save={tmp_path / 'run'}", f"--load={tmp_path / 'run'}", "--save-interval=1")
    arguments = from_hf(setup, *LORA, *saving, steps=3)
    expected = pool.run(train, from_hf(setup, *LORA, steps=3))[0]["steps"]
    pool.run(train, [*arguments, "--exit-interval=1"])
    assert pool.run(train, arguments)[0]["steps"] == expected[1:]
    out = tmp_path / "out"
    assert pool.run(beside_base, tmp_path / "run", hf_folder(setup), out, timeout=120)[0] <= 1e-4
    other = tmp_path / "hf"
    shutil.copytree(hf_folder(setup), other)
    tensors = load_file(other / "model.safetensors")
    save_file({k: t + 1 for k, t in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(AssertionError, match=f"trained beside other weights .* of {other}"):
        pool.run(train, [*arguments, f"--load-hf={other}"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--num-layers=5",), "--num-layers 5 contradicts num_layers 4 in .*/config.json"),
        (("--pretrained-checkpoint=x",), "--pretrained-checkpoint x and --load-hf .* give one"),
        (("--load-hf=/nowhere",), "/nowhere: no such folder"),
    ],
)
def test_contradictions_are_one_line(pool, setup, flags, said):
    with pytest.raises(AssertionError, match=said):
        pool.run(train, [*from_hf(setup), *flags])


def test_a_root_of_checkpoints_is_told_from_a_folder(pool, setup):
    with pytest.raises(AssertionError, match="--load-hf .* name it with --pretrained-checkpoint"):
        pool.run(train, [*from_hf(setup), f"--load-hf={setup.root}"])
