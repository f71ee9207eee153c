"""Adapter folders of PEFT, and of the original LLaVA code, read under names of the hub layout.

adapter_config.json               rank, alpha and kind
adapter_model.safetensors, .bin   lora_A and lora_B of each linear; modules that PEFT saved whole
image_newline.safetensors         the newline, as `peft_folder` writes it
non_lora_trainables.bin           the projector and the newline, as the original code saves them
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_llava.config.lora import TARGET_MODULES, LoraConfig
from megatron_llava.convert.hf_config import read_json
from megatron_llava.convert.llava_names import name_of_original
from megatron_llava.convert.peft_names import PREFIX, PROJECTOR, hub_name_of_peft
from megatron_llava.convert.weight_files import SafetensorsFile, TorchFile, WeightFile

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
NEWLINE_FILE = "image_newline.safetensors"
NEWLINE = "image_newline"
_TORCH_FILE = "adapter_model.bin"
_ORIGINAL_FILE = "non_lora_trainables.bin"
# What the products here do not compute, by the values that mean so.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "use_rslora": (None, False),
    "use_qalora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "modules_to_save": (None, [], [PROJECTOR]),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "use_bdlora": (None, False),
    # Others subtract from the weights what the adapters begin with.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}


def read_peft(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """What the adapters of a folder are, and its tensors by hub name.

    Raises:
        ValueError: one line: a file is missing or damaged, or says something that is not computed
            here, or adapts another part than the language model.
    """
    config = _checked_config(folder / CONFIG_FILE)
    path = next((p for p in _weight_paths(folder) if p.is_file()), None)
    if path is None:
        raise ValueError(f"{folder / WEIGHTS_FILE}: no such file")
    tensors = _tensors(path)
    linears = {name.split(".")[-3] for name in tensors if ".lora_" in name}
    if not linears:
        raise ValueError(f"{path}: holds no lora_A and lora_B")
    if (folder / NEWLINE_FILE).is_file():
        newline = SafetensorsFile(folder / NEWLINE_FILE)
        tensors |= {name: newline.tensor(name) for name in newline.names()}
    if (folder / _ORIGINAL_FILE).is_file():
        tensors |= _of_original(folder / _ORIGINAL_FILE)
    lora = LoraConfig(
        lora_rank=config["r"],
        lora_alpha=float(config["lora_alpha"]),
        lora_dropout=float(config.get("lora_dropout") or 0.0),
        lora_target_modules=tuple(target for target in TARGET_MODULES if target in linears),
    )
    return lora, tensors


def _weight_paths(folder: Path) -> tuple[Path, Path]:
    return folder / WEIGHTS_FILE, folder / _TORCH_FILE


def _checked_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {config.get('peft_type')!r}; supported: 'LORA'")
    for key, allowed in _UNSUPPORTED.items():
        if config.get(key) not in allowed:
            raise ValueError(f"{path}: {key} is {config[key]!r}, which is not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)) or alpha <= 0:
        raise ValueError(f"{path}: r is {rank!r} and lora_alpha {alpha!r}; expected above 0")
    return config


def _tensors(path: Path) -> dict[str, Tensor]:
    file: WeightFile = SafetensorsFile(path) if path.name == WEIGHTS_FILE else TorchFile(path)
    found: dict[str, Tensor] = {}
    for name in file.names():
        try:
            hub = hub_name_of_peft(name)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        found[hub] = file.tensor(name)
    return found


def _of_original(path: Path) -> dict[str, Tensor]:
    """The projector and the newline beside adapters of the original code."""
    file = TorchFile(path)
    names = {name.removeprefix(PREFIX): name for name in file.names()}
    found = {}
    for original, name in names.items():
        hub = name_of_original(original, names)
        if hub != NEWLINE and not hub.startswith(PROJECTOR + "."):
            raise ValueError(f"{path}: {name} is neither the projector's nor the newline")
        found[hub] = file.tensor(name)
    return found
