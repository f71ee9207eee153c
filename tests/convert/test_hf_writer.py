import json
import zlib

import pytest
import torch
from safetensors.torch import load_file

from megatron_llava.convert.hf_writer import plan_shards, write_hf
from megatron_llava.convert.journal import JOURNAL_FILE, Journal
from megatron_llava.convert.tensor_source import InMemory
from megatron_llava.convert.weights_folder import CHECKSUM_FILE


def write(folder, tensors, limit=10**9):
    write_hf(folder, InMemory(tensors), Journal(folder, {}), limit)


def test_one_shard_has_no_index(tmp_path):
    write(tmp_path, {"a": torch.arange(4.0)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        JOURNAL_FILE,
        "model.safetensors",
        CHECKSUM_FILE,
    ]
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], torch.arange(4.0))


def test_shards_stay_below_the_limit_and_the_index_knows_them(tmp_path):
    content = {name: torch.full((5,), float(ord(name))) for name in "abc"}  # 20 bytes each
    content["large"] = torch.zeros(100)
    write(tmp_path, content, limit=40)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 460
    shards = {}
    for name, file_name in index["weight_map"].items():
        shards.setdefault(file_name, []).append(name)
        assert torch.equal(load_file(tmp_path / file_name)[name], content[name])
    assert sorted(shards.values()) == [["a", "b"], ["c"], ["large"]]
    assert sorted(shards) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    with pytest.raises(ValueError, match="max_shard_bytes is 0"):
        plan_shards(InMemory(content), 0)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_every_dtype_and_shape_is_read_by_the_library(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = {"scalar": (), "one": (1,), "empty": (0, 3), "odd": (3, 5), "deep": (2, 1, 3, 2)}
    content = {
        name: torch.randint(0, 2, shape, generator=generator).to(dtype)
        for name, shape in shapes.items()
    }
    content["view"] = torch.arange(100).to(dtype)[10:90:7]
    write(tmp_path, content)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == content.keys()
    for name, tensor in content.items():
        assert found[name].dtype == dtype and torch.equal(found[name], tensor), name


def test_checksums_are_of_the_bytes(tmp_path):
    content = {"a": torch.randn(7), "b": torch.randn(3, 2).bfloat16()}
    write(tmp_path, content, limit=30)
    found = json.loads((tmp_path / CHECKSUM_FILE).read_text())
    assert found["algorithm"] == "crc32"
    assert found["tensors"]["b"] == {
        "dtype": "BF16",
        "shape": [3, 2],
        "crc32": f"{zlib.crc32(content['b'].view(torch.uint8).numpy().tobytes()):08x}",
    }


class Interrupted(InMemory):
    """Ends the process's work at a tensor, and remembers what was asked for."""

    def __init__(self, tensors, at=None):
        super().__init__(tensors)
        self.at, self.asked = at, []

    def tensor(self, name):
        if name == self.at:
            raise KeyboardInterrupt
        self.asked.append(name)
        return super().tensor(name)


def test_finished_shards_are_not_written_again(tmp_path):
    content = {name: torch.full((5,), float(ord(name))) for name in "abcdef"}
    with pytest.raises(KeyboardInterrupt):
        write_hf(tmp_path, Interrupted(content, "e"), Journal(tmp_path, {"task": 1}), 40)
    source = Interrupted(content)
    write_hf(tmp_path, source, Journal(tmp_path, {"task": 1}), 40)
    assert source.asked == ["e", "f"]
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        found |= load_file(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in content.items())
    assert len(json.loads((tmp_path / CHECKSUM_FILE).read_text())["tensors"]) == 6
    other = Interrupted(content)
    write_hf(tmp_path, other, Journal(tmp_path, {"task": 2}), 40)
    assert other.asked == list("abcdef")
