"""Damaged folders and checkpoints: each is an error of one line, and nothing is left behind."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llava import tiny_llava

from megatron_llava.convert.checkpoint import export_hf, import_hf
from megatron_llava.convert.hf_writer import write_hf
from megatron_llava.convert.journal import Journal
from megatron_llava.convert.tensor_source import InMemory
from megatron_llava.convert.weights_folder import CHECKSUM_FILE, INDEX_FILE, SINGLE_FILE

CORRUPTIONS = 200
KINDS = ("drop", "rename", "reshape", "retype", "surplus", "truncate", "resize", "index", "delete")


def resave(folder: Path, tensors: dict, sharded: bool) -> None:
    """Write the tensors in one file, or in several with an index."""
    for path in [*folder.glob("*.safetensors"), folder / INDEX_FILE]:
        path.unlink(missing_ok=True)
    if sharded:
        write_hf(folder, InMemory(tensors), Journal(folder, {}), max_shard_bytes=200_000)
        for name in (".journal.json", CHECKSUM_FILE):
            (folder / name).unlink()
    else:
        save_file(tensors, folder / SINGLE_FILE)


def corrupt_tensors(tensors: dict, kind: str, draw: random.Random) -> str:
    """Change one tensor; which, and how."""
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    if kind == "drop":
        del tensors[name]
    elif kind == "rename":
        at = draw.randrange(len(name))
        other = draw.choice([letter for letter in "xyz_" if letter != name[at]])
        tensors[name[:at] + other + name[at + 1 :]] = tensors.pop(name)
    elif kind == "reshape":
        shape = list(tensor.shape)
        changes = [[*shape, 1], [1, *shape], [tensor.numel()]]
        if len(shape) > 1 and shape[0] != shape[1]:
            changes.append([shape[1], shape[0], *shape[2:]])
        tensors[name] = tensor.reshape(draw.choice([c for c in changes if c != shape]))
    elif kind == "resize":
        rows = tensor.shape[0] + draw.choice([-1, 1, 7])
        tensors[name] = torch.zeros(max(rows, 1), *tensor.shape[1:]) if rows else tensor[:0]
    elif kind == "retype":
        dtypes = [torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.uint8]
        tensors[name] = tensor.to(draw.choice(dtypes))
    else:
        assert kind == "surplus"
        tensors[name + draw.choice(["", "2", ".weight"]) + "x"] = tensor.clone()
    return name


def corrupt(folder: Path, seed: int) -> str:
    """Damage a folder in one way; says how."""
    draw = random.Random(seed)
    kind, sharded = KINDS[seed % len(KINDS)], draw.random() < 0.5
    tensors = load_file(folder / SINGLE_FILE)
    if kind in ("truncate", "index", "delete"):
        resave(folder, tensors, sharded or kind == "index")
        if kind == "index":
            return corrupt_index(folder, draw)
        paths = [p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")]
        if kind == "delete":
            paths = [p for p in paths if p.name in NEEDED or p.suffix == ".safetensors"]
        path = draw.choice(sorted(paths))
        if kind == "delete":
            path.unlink()
        else:
            content = path.read_bytes()
            path.write_bytes(content[: draw.randrange(len(content) - 1)])
        return f"{kind} {path.name}"
    name = corrupt_tensors(tensors, kind, draw)
    resave(folder, tensors, sharded)
    return f"{kind} {name}"


NEEDED = ("config.json", "preprocessor_config.json", INDEX_FILE)


def corrupt_index(folder: Path, draw: random.Random) -> str:
    path = folder / INDEX_FILE
    index = json.loads(path.read_text())
    name = draw.choice(sorted(index["weight_map"]))
    files = sorted(set(index["weight_map"].values()))
    choice = draw.randrange(4)
    if choice == 0:
        del index["weight_map"][name]
    elif choice == 1:
        index["weight_map"][name] = "absent.safetensors"
    elif choice == 2:
        others = [file for file in files if file != index["weight_map"][name]]
        index["weight_map"][name] = draw.choice(others)
    else:
        index["weight_map"][name + "x"] = files[0]
    path.write_text(json.dumps(index))
    return f"index {choice} {name}"


def try_all(source: Path, work: Path, damage: str, count: int) -> list[str]:
    """Damage a copy in `count` ways and convert it; what went wrong, if anything."""
    change, convert = {"folder": (corrupt, import_hf), "root": (damage_root, export_hf)}[damage]
    copy, target, wrong = work / "copy", work / "target", []
    for seed in range(count):
        shutil.copytree(source, copy)
        how = f"seed {seed}: {change(copy, seed)}"
        try:
            convert(copy, target)
            wrong.append(f"{how}: converted")
        except ValueError as error:
            if "\n" in str(error):
                wrong.append(f"{how}: of several lines: {error}")
        except Exception as error:
            wrong.append(f"{how}: {type(error).__name__}: {error}")
        left = sorted(path.name for path in work.iterdir())
        if left != ["copy"]:
            wrong.append(f"{how}: left {left}")
            shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(copy)
    return wrong


@pytest.mark.parametrize(
    ("model_type", "text", "tower"),
    [("llava_next", "mistral", "clip-336"), ("llava_onevision", "qwen2-tied", "siglip")],
)
def test_no_corruption_converts_silently(core_process, tmp_path, model_type, text, tower):
    source = tiny_llava(tmp_path / "source", model_type, text, tower)
    work = tmp_path / "work"
    work.mkdir()
    assert core_process(try_all, source, work, "folder", CORRUPTIONS) == []


@pytest.fixture(scope="module")
def converted(core_process, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    core_process(import_hf, tiny_llava(folder / "hf"), folder / "root")
    return folder / "root"


def damage_root(root: Path, seed: int) -> str:
    draw = random.Random(seed)
    paths = sorted(p for p in root.rglob("*") if p.is_file())
    skipped = ("merges.txt", "chat_template.jinja", "common.pt", "metadata.json")
    path = draw.choice([p for p in paths if p.name not in skipped])
    content = path.read_bytes()
    if seed % 3 == 0 and path.parent.name != "hf" and path.name != CHECKSUM_FILE:
        path.unlink()
        return f"delete {path.name}"
    path.write_bytes(content[: draw.randrange(max(len(content) - 1, 1))])
    return f"truncate {path.name} to {path.stat().st_size} of {len(content)}"


def test_no_damaged_checkpoint_is_exported_silently(core_process, tmp_path, converted):
    assert core_process(try_all, converted, tmp_path, "root", 60) == []


def test_flipped_bits_are_found_by_the_checksums(core_process, tmp_path, converted):
    folder = tmp_path / "hf"
    core_process(export_hf, converted, folder)
    path = folder / SINGLE_FILE
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tensor .* has the checksum .*: the file is damaged"):
        core_process(import_hf, folder, tmp_path / "root")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]
    (folder / CHECKSUM_FILE).unlink()
    core_process(import_hf, folder, tmp_path / "root")


def test_flipped_bits_of_a_converted_checkpoint_are_found(core_process, tmp_path, converted):
    root = tmp_path / "root"
    shutil.copytree(converted, root)
    path = next((root / "release").glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="has the checksum|cannot be read"):
        core_process(export_hf, root, tmp_path / "hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]


class Stop:
    """A progress that interrupts at a tensor."""

    def __init__(self, after: int) -> None:
        self.after, self.names = after, []

    def add(self, name, tensor):
        self.names.append(name)
        if len(self.names) == self.after:
            raise KeyboardInterrupt


def interrupted_import(source: Path, root: Path) -> tuple[int, int]:
    """Import with an interruption, and again; tensors read by the first and the second call."""
    first, second = Stop(40), Stop(10**9)
    with pytest.raises(KeyboardInterrupt):
        import_hf(source, root, first, part_bytes=50_000)
    assert not root.exists()
    import_hf(source, root, second, part_bytes=50_000)
    return len(first.names), len(second.names)


def test_an_interrupted_import_is_taken_up_again(core_process, tmp_path):
    from megatron_llava.convert.verify import verify

    source, root = tiny_llava(tmp_path / "hf"), tmp_path / "root"
    first, second = core_process(interrupted_import, source, root)
    core_process(import_hf, source, tmp_path / "at-once")
    total = len({*core_process(parameter_names, root)})
    assert first == 40 and total - 40 <= second < total
    core_process(verify, root, source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["at-once", "hf", "root"]
    assert len(list((root / "release").glob("*.distcp"))) > 5


def parameter_names(root: Path) -> list[str]:
    from megatron_llava.convert.megatron_reader import MegatronReader
    from megatron_llava.convert.root_files import read_root_mapping

    return MegatronReader(root, read_root_mapping(root)).names()


def test_an_import_in_another_dtype(core_process, tmp_path):
    from megatron_llava.convert.verify import verify

    source, root = tiny_llava(tmp_path / "hf"), tmp_path / "root"
    core_process(import_hf, source, root, None, torch.bfloat16)
    conversion = json.loads((root / "hf" / "conversion.json").read_text())
    assert conversion["params_dtype"] == "bfloat16"
    core_process(verify, root, source, None, torch.bfloat16)
    with pytest.raises(ValueError, match="differ in"):
        core_process(verify, root, source)


def without_room(source: Path, root: Path, exported: Path) -> list[str]:
    original, found = shutil.disk_usage, []
    shutil.disk_usage = lambda path: original(path)._replace(free=1000)
    try:
        for convert, arguments in (
            (import_hf, (source, root / "new")),
            (export_hf, (root, exported)),
        ):
            with pytest.raises(ValueError) as caught:
                convert(*arguments)
            found.append(str(caught.value))
    finally:
        shutil.disk_usage = original
    return found


def test_the_disk_is_checked_first(core_process, tmp_path, converted):
    source = tiny_llava(tmp_path / "hf")
    messages = core_process(without_room, source, converted, tmp_path / "out")
    assert all("bytes and 1,000 are free" in message for message in messages)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]
