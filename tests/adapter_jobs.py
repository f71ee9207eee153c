"""Jobs about adapters: logits beside their base, by this project and by `peft`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_checkpoints import randomise

Logits = dict[str, torch.Tensor]


def asked_of(root: Path) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """The mapping of a root, its image settings as its class of transformers has them, cases."""
    from megatron_llava.convert.hf_images import VIEWS_OF_CLASS
    from megatron_llava.convert.root_files import read_root_mapping, run_config
    from megatron_llava.convert.verify_logits import cases
    from megatron_llava.vision.settings import image_settings

    mapping = read_root_mapping(root)
    model_type = json.loads((root / "hf" / "config.json").read_text())["model_type"]
    mapping |= {"multi_image_views": VIEWS_OF_CLASS[model_type]}
    settings = image_settings(run_config(mapping, "model.yaml"))
    return mapping, settings, cases(mapping, settings)


def our_logits(base: Path, adapters: Path, **changes: Any) -> Logits:
    """Logits of each case with the adapters beside the base, not merged.

    Args:
        changes: of the settings of the adapters, such as how their base is held.
    """
    from megatron_llava.convert.megatron_reader import MegatronReader
    from megatron_llava.convert.places import build_for_compute
    from megatron_llava.convert.single_process import single_process
    from megatron_llava.convert.verify_batch import batch_of
    from megatron_llava.parallel.adapter_record import read_record
    from megatron_llava.peft.four_bit_linears import quantize_base
    from megatron_llava.training.freeze import freeze_parts

    mapping, settings, asked = asked_of(adapters)
    lora = replace(read_record(adapters).lora, **changes)
    sources = [MegatronReader(base, mapping), MegatronReader(adapters, mapping, lora=lora)]
    state = {name: source.tensor(name) for source in sources for name in source.names()}
    with single_process(), torch.no_grad():
        model = build_for_compute(mapping, torch.float32, lora).eval()
        model.load_state_dict(state)
        freeze_parts(model, ())
        quantize_base([model], lora)
        batches = {name: batch_of(*case, settings) for name, case in asked.items()}
        return {
            name: model.logits(model.decode(batch), torch.arange(batch.num_rows))
            for name, batch in batches.items()
        }


def peft_logits(root: Path, hf: Path, folder: Path | None, **loading: Any) -> Logits:
    """Logits of the class of transformers, with an adapter folder that `peft` loads beside it.

    Args:
        loading: more for `from_pretrained`.
    """
    import peft

    from megatron_llava.convert.hf_model import HFModel
    from megatron_llava.convert.verify_logits import expanded_ids

    _, settings, asked = asked_of(root)
    model = HFModel(hf, json.loads((hf / "config.json").read_text())["model_type"])
    if loading:
        model.model = type(model.model).from_pretrained(hf, dtype=torch.float32, **loading).eval()
        for linear in model.model.modules():
            # The kernel that bitsandbytes has for such processors multiplies in bfloat16.
            if hasattr(linear, "support_avx512bf16_for_cpu"):
                linear.support_avx512bf16_for_cpu = False
    if folder is not None:
        peft.PeftModel.from_pretrained(model.model, str(folder)).eval()
        if (folder / "image_newline.safetensors").is_file():
            newline = load_file(folder / "image_newline.safetensors")["image_newline"]
            model.model.model.image_newline.data.copy_(newline)
    image_token = model.model.config.image_token_id
    return {
        name: model.logits(expanded_ids(ids, images, image_token, settings), images)
        for name, (ids, images) in asked.items()
    }


def make_peft_folder(hf: Path, folder: Path, **changes: Any) -> None:
    """Adapters that `peft` itself makes and saves, every factor with numbers that matter."""
    import peft
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(hf)
    settings = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.1, **changes}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    randomise(torch.nn.ParameterList(trained), 7)
    adapted.save_pretrained(folder)


def largest(one: Logits, other: Logits) -> float:
    """The largest difference of a logit that both have."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n][:, : one[n].shape[1]]).abs().max()) for n in one)


def imported(folder: Path, hf: Path, **changes: Any) -> dict[str, float]:
    """Adapters of `peft` here: differences of logits to theirs, by the way that they went."""
    from megatron_llava.convert.adapter_checkpoint import merge_adapters
    from megatron_llava.convert.checkpoint import import_hf, load_state
    from megatron_llava.convert.peft_folder import export_peft, import_peft
    from megatron_llava.convert.verify_logits import megatron_logits

    base, theirs, ours = folder / "base", folder / "peft", folder / "adapters"
    import_hf(hf, base)
    make_peft_folder(hf, theirs, **changes)
    import_peft(theirs, base, ours)
    export_peft(ours, folder / "back")
    merge_adapters(ours, base, folder / "merged")
    expected = peft_logits(base, hf, theirs)
    found = our_logits(base, ours)
    mapping, _, asked = asked_of(ours)
    state = load_state(folder / "merged", mapping)
    before = load_file(theirs / "adapter_model.safetensors")
    after = load_file(folder / "back" / "adapter_model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    return {
        "unmerged": largest(found, expected),
        "merged": largest(megatron_logits(folder / "merged", mapping, state, asked), found),
        "exported again": largest(expected, peft_logits(base, hf, folder / "back")),
        "without adapters": largest(expected, peft_logits(base, hf, None)),
    }


def exported(run: Path, base: Path, hf: Path, folder: Path) -> dict[str, float]:
    """A run's adapters in `peft`, and merged: differences of logits to ours beside the base.

    Under `folder` the adapters are left as `peft` takes them, and as `adapters` made of that.
    """
    from megatron_llava.convert.adapter_checkpoint import merge_adapters
    from megatron_llava.convert.checkpoint import export_hf
    from megatron_llava.convert.peft_folder import export_peft, import_peft

    export_peft(run, folder / "peft", base_model=str(hf))
    import_peft(folder / "peft", base, folder / "adapters")
    merge_adapters(run, base, folder / "merged")
    export_hf(folder / "merged", folder / "hf")
    found = our_logits(base, run)
    return {
        "peft": largest(found, peft_logits(run, hf, folder / "peft")),
        "merged": largest(found, peft_logits(run, folder / "hf", None)),
        "without adapters": largest(found, peft_logits(run, hf, None)),
    }


def beside_base(run: Path, base: Path, folder: Path) -> float:
    """What the tools make of a run's adapters with --base: the difference of logits when exported.

    The folder that they are exported to is that of the merged model, bit by bit.
    """
    from megatron_llava.convert.adapter_checkpoint import merge_adapters
    from megatron_llava.convert.checkpoint import export_hf
    from megatron_llava.convert.verify import verify

    export_hf(run, folder / "hf", base=base)
    verify(run, folder / "hf", base=base)
    merge_adapters(run, base, folder / "merged")
    export_hf(folder / "merged", folder / "again")
    stored, again = (load_file(folder / name / "model.safetensors") for name in ("hf", "again"))
    assert stored.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())
    return largest(loaded_logits(run, base), peft_logits(run, folder / "hf", None))


def loaded_logits(run: Path, base: Path, **execution: Any) -> Logits:
    """Logits of each case of what tools/evaluate.py loads with --base.

    Args:
        execution: fields of ``Execution``.
    """
    from megatron_llava.convert.single_process import single_process
    from megatron_llava.convert.verify_batch import batch_of
    from megatron_llava.inference.execution import Execution
    from megatron_llava.inference.load import inference_config, load_model

    how = {"base": str(base), "execution": Execution(**execution)}
    config = inference_config(str(run), device="cpu", **how)
    _, settings, asked = asked_of(run)
    with single_process(), torch.no_grad():
        device = torch.device("cpu")
        model, _ = load_model(str(run), config, iteration=None, device=device, **how)
        batches = {name: batch_of(*case, settings) for name, case in asked.items()}
        return {
            name: model.logits(model.decode(batch), torch.arange(batch.num_rows))[
                :, : model.vocab_size
            ]
            for name, batch in batches.items()
        }


def same_from_original(folder: Path, hf: Path) -> None:
    """A folder as the original code saves one is imported as the same numbers in PEFT's format."""
    from safetensors.torch import save_file

    from megatron_llava.convert.checkpoint import import_hf
    from megatron_llava.convert.llava_names import original_name
    from megatron_llava.convert.megatron_reader import MegatronReader
    from megatron_llava.convert.peft_folder import import_peft
    from megatron_llava.convert.peft_names import PREFIX, hub_name_of_peft, target_pattern
    from megatron_llava.parallel.adapter_record import read_record

    ours, theirs = folder / "peft", folder / "original"
    targets = target_pattern(("q_proj", "k_proj", "v_proj"))
    make_peft_folder(hf, ours, target_modules=targets, modules_to_save=["multi_modal_projector"])
    newline = {"image_newline": torch.randn(128)}
    save_file(newline, ours / "image_newline.safetensors")
    theirs.mkdir()
    (theirs / "adapter_config.json").write_bytes((ours / "adapter_config.json").read_bytes())
    stored = load_file(ours / "adapter_model.safetensors")
    tensors = newline | {hub_name_of_peft(name): tensor for name, tensor in stored.items()}
    named = {PREFIX + original_name(name): tensor for name, tensor in tensors.items()}
    adapters = {name: tensor for name, tensor in named.items() if ".lora_" in name}
    torch.save(adapters, theirs / "adapter_model.bin")
    rest = {name: tensor for name, tensor in named.items() if name not in adapters}
    assert len(rest) == 5
    torch.save(rest, theirs / "non_lora_trainables.bin")
    import_hf(hf, folder / "base")
    readers = []
    for source in (ours, theirs):
        root = folder / f"{source.name}-root"
        import_peft(source, folder / "base", root)
        mapping, _, _ = asked_of(root)
        readers.append(MegatronReader(root, mapping, lora=read_record(root).lora))
    one, other = readers
    assert one.names() == other.names() and "image_newline" in one.names()
    assert all(torch.equal(one.tensor(name), other.tensor(name)) for name in one.names())
    assert torch.equal(one.tensor("image_newline"), newline["image_newline"])
    torch.save(rest | {"model.vision_tower.x": newline["image_newline"]}, theirs / "more.bin")
    (theirs / "more.bin").rename(theirs / "non_lora_trainables.bin")
    import_peft(theirs, folder / "base", folder / "refused")


def four_bit_beside_peft(
    run: Path, base: Path, hf: Path, folder: Path
) -> tuple[Logits, Logits, Logits]:
    """A run's adapters beside their base in NF4, here and in `peft`, and beside the whole base."""
    from transformers import BitsAndBytesConfig

    from megatron_llava.convert.peft_folder import export_peft

    export_peft(run, folder, base_model=str(hf))
    whole_parts = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    theirs = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=whole_parts,
    )
    return (
        our_logits(base, run, load_in_4bit=True),
        peft_logits(run, hf, folder, quantization_config=theirs),
        our_logits(base, run),
    )


def merged_logits(run: Path, base: Path, folder: Path) -> Logits:
    """Logits of the whole model that tools/lora.py merge makes of a run's adapters."""
    from megatron_llava.convert.adapter_checkpoint import merge_adapters
    from megatron_llava.convert.checkpoint import load_state
    from megatron_llava.convert.verify_logits import megatron_logits

    merge_adapters(run, base, folder)
    mapping, _, asked = asked_of(folder)
    return megatron_logits(folder, mapping, load_state(folder, mapping), asked)
