"""Run by torchrun: load a converted checkpoint over two tensor-parallel ranks, check, save again.

Arguments: root to load, file with its whole parameters, root to save (every parameter plus one).
"""

import shutil
import sys
from pathlib import Path

import torch

from megatron_llava.config.model_yaml import fill_model_from
from megatron_llava.config.parallel import ParallelConfig
from megatron_llava.config.run import RunConfig
from megatron_llava.config.yaml_file import read_yaml_mapping
from megatron_llava.convert.families import table
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.rules import COLUMN, GATE_UP, QKV, REPLICATED, ROW, VOCABULARY
from megatron_llava.parallel.checkpoint_directory import RELEASE, SIDE_FILES
from megatron_llava.platform.device import join_process_group, leave_process_group, set_up_device

RANKS = 2


def local_part(axis: str, whole: torch.Tensor, rank: int) -> torch.Tensor:
    """What a rank holds, by the words of `rules`."""
    if axis == REPLICATED:
        return whole
    if axis in (COLUMN, QKV):
        return whole.chunk(RANKS, dim=0)[rank]
    if axis == ROW:
        return whole.chunk(RANKS, dim=1)[rank]
    assert axis == GATE_UP, axis
    return torch.cat([half.chunk(RANKS, dim=0)[rank] for half in whole.chunk(2, dim=0)])


def check_parts(source: Path, whole: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Every parameter is the part of the whole that its row names."""
    rank = torch.distributed.get_rank()
    parameters = dict(model.named_parameters())
    rules = table(read_root_mapping(source)).rules
    assert {rule.megatron for rule in rules} == set(parameters)
    for rule in rules:
        found, name = parameters[rule.megatron].data, rule.megatron
        if rule.tensor_parallel == VOCABULARY:
            start = found.shape[0] * rank
            expected = whole[name][start : start + found.shape[0]]
            assert found.shape[0] * RANKS > whole[name].shape[0], "the vocabulary is padded"
            found = found[: len(expected)]
        else:
            expected = local_part(rule.tensor_parallel, whole[name], rank)
        assert torch.equal(found, expected), name


def main() -> None:
    source, whole, target = (Path(argument) for argument in sys.argv[1:])
    set_up_device("cpu")
    from megatron_llava.models.build import build_llava_model
    from megatron_llava.parallel.checkpoint_io import load_sharded, save_sharded
    from megatron_llava.parallel.groups import initialize_groups

    join_process_group("cpu", timeout_minutes=5)
    initialize_groups(ParallelConfig(device="cpu", tensor_model_parallel_size=RANKS))
    given = RunConfig().with_values({"device": "cpu", "tensor_model_parallel_size": RANKS}, "flag")
    yaml = str(source / "model.yaml")
    model = build_llava_model(fill_model_from(given, read_yaml_mapping(yaml), yaml))
    loaded = load_sharded(source, RELEASE, {"model": model.sharded_state_dict()}, strict=False)
    model.load_state_dict(loaded["model"], strict=True)
    check_parts(source, torch.load(whole), model)
    for parameter in model.parameters():
        parameter.data += 1.0
    save_sharded(target, 5, {"model": model.sharded_state_dict(), "iteration": 5})
    if torch.distributed.get_rank() == 0:
        for name in SIDE_FILES:
            copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
            copy(source / name, target / name)
    leave_process_group()


if __name__ == "__main__":
    main()
