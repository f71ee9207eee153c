import json

import pytest
import torch
from safetensors.torch import load_file

from megatron_llava.convert.hf_writer import HFWriter
from megatron_llava.convert.output_folder import pending_folder


def test_one_shard_has_no_index(tmp_path):
    writer = HFWriter(tmp_path)
    writer.add("a", torch.arange(4.0))
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], torch.arange(4.0))


def test_shards_stay_below_the_limit_and_the_index_knows_them(tmp_path):
    writer = HFWriter(tmp_path, max_shard_bytes=40)
    content = {name: torch.full((5,), float(ord(name))) for name in "abc"}  # 20 bytes each
    content["large"] = torch.zeros(100)
    for name, tensor in content.items():
        writer.add(name, tensor)
    writer.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 460
    shards = {}
    for name, file_name in index["weight_map"].items():
        shards.setdefault(file_name, []).append(name)
        assert torch.equal(load_file(tmp_path / file_name)[name], content[name])
    assert sorted(shards.values()) == [["a", "b"], ["c"], ["large"]]
    assert sorted(shards) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert len(list(tmp_path.iterdir())) == 4


def test_views_are_written_alone_and_names_only_once(tmp_path):
    writer = HFWriter(tmp_path)
    whole = torch.arange(1000.0)
    writer.add("a", whole[:4])
    writer.add("b", whole[:4])
    with pytest.raises(ValueError, match="tensor a is written twice"):
        writer.add("a", whole)
    writer.close()
    assert (tmp_path / "model.safetensors").stat().st_size < 400


def test_a_failure_leaves_nothing_behind(tmp_path):
    final = tmp_path / "out"
    with pytest.raises(RuntimeError), pending_folder(final) as pending:
        (pending / "file").write_text("half")
        assert not final.exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_unless_empty(tmp_path):
    final = tmp_path / "out"
    final.mkdir()
    with pending_folder(final) as pending:
        (pending / "file").write_text("whole")
    assert [path.name for path in final.iterdir()] == ["file"]
    with pytest.raises(ValueError, match="already exists"), pending_folder(final):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
