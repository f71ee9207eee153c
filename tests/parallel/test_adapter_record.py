"""What a folder says of its adapters, and which weights they belong to."""

import pytest

from megatron_llava.config.lora import LoraConfig
from megatron_llava.parallel.adapter_record import (
    AdapterRecord,
    check_base,
    digest_of,
    read_adapter_record,
    refuse_adapters,
)
from megatron_llava.parallel.checkpoint_directory import CheckpointError

LORA = LoraConfig(lora_rank=8, lora_alpha=12.5, lora_target_modules=("q_proj", "up_proj"))


@pytest.fixture
def base(tmp_path):
    """A folder that holds a checkpoint, as far as its files are looked at."""
    (tmp_path / "base" / "iter_0000002").mkdir(parents=True)
    (tmp_path / "base" / "iter_0000002" / "weights").write_text("numbers")
    (tmp_path / "base" / "latest_checkpointed_iteration.txt").write_text("2")
    return tmp_path / "base"


def test_a_record_reads_back_and_names_the_flags(tmp_path, base):
    assert read_adapter_record(tmp_path) is None
    refuse_adapters(tmp_path)
    record = AdapterRecord.of(LORA, digest_of(base))
    (tmp_path / "lora.json").write_text(record.text())
    assert read_adapter_record(tmp_path) == record
    assert record.flags == "--lora-rank 8 --lora-alpha 12.5 --lora-target-modules q_proj,up_proj"
    assert record.lora.scaling == LORA.scaling
    with pytest.raises(CheckpointError, match=f"{tmp_path}: holds adapters"):
        refuse_adapters(tmp_path)


def test_adapters_belong_to_the_weights_that_they_were_trained_beside(tmp_path, base):
    record = AdapterRecord.of(LORA, digest_of(base))
    check_base(tmp_path, record, base)
    (base / "iter_0000002" / "weights").write_text("more numbers")
    with pytest.raises(CheckpointError, match=f"lora.json: .* other weights .* of {base}"):
        check_base(tmp_path, record, base)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        check_base(tmp_path, record, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rank": 4}', '{"rank": "x", "alpha": 1}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "lora.json").write_text(text)
    with pytest.raises(CheckpointError, match="lora.json: no readable record"):
        read_adapter_record(tmp_path)
