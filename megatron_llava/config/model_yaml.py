"""A checkpoint's ``model.yaml``: the architecture that its weights were made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_llava.config.presets import model_values, same_weights
from megatron_llava.config.run import RunConfig, all_fields
from megatron_llava.config.yaml_file import field_values, write_yaml

MODEL_GROUPS = ("language", "vision", "image")

# Model fields that another one decides, or that a model of one view has none of; a run cannot do
# without the others, which come from a checkpoint or from flags.
MAY_STAY_UNSET = (
    "num_query_groups",
    "kv_channels",
    "image_grid_pinpoints",
    "image_mean",
    "image_std",
    "image_resize_mode",
    "vision_hf_config",
)


def model_to_yaml(config: RunConfig) -> str:
    """The text of ``model.yaml``: the language, vision and image fields that are not None."""
    return write_yaml(
        choose=lambda spec: spec.group in MODEL_GROUPS and config.get(spec.name) is not None,
        value=lambda spec: config.get(spec.name),
        comment=lambda spec: "",
    )


def fill_named_model(config: RunConfig, name: str) -> RunConfig:
    """A copy of ``config`` with what the user did not give taken from a published model.

    Raises:
        ValueError: there is no such model.
    """
    values = _without_replaced_grid(model_values(name), config)
    missing = {field: value for field, value in values.items() if field not in config.explicit}
    return config.with_values(missing, "model")


def fill_model_from(config: RunConfig, mapping: Mapping[Any, Any], source: str) -> RunConfig:
    """A copy of ``config`` with the model's fields taken from a checkpoint.

    A field that the user gave (``config.explicit``) keeps the user's value. Where it describes the
    weights, that value must be the checkpoint's, and so must a named model's (``--model``).

    Args:
        config: the run's settings.
        mapping: what ``model.yaml`` holds (see :func:`model_to_yaml`).
        source: the file's name, for messages.

    Raises:
        ValueError: an unknown key or a bad value in the mapping, or a flag that contradicts the
            weights (names the flag, both values and the file).
    """
    explicit = config.explicit
    values = _without_replaced_grid(field_values(mapping, source, MODEL_GROUPS), config)
    named = {name: config.get(name) for name, kind in config.sources.items() if kind == "model"}
    filled: dict[str, Any] = {}
    for name, value in values.items():
        spec = all_fields()[name]
        if name in named and spec.info.from_checkpoint == "fixed":
            if not same_weights(name, named[name], values, named):
                raise ValueError(
                    f"--model {config.checkpoint.model} has {name} {named[name]}, which "
                    f"contradicts {value} in {source}: drop it, or start from a checkpoint of "
                    "that model"
                )
            filled[name] = value
        elif name not in explicit:
            filled[name] = value
        elif spec.info.from_checkpoint == "fixed" and config.get(name) != value:
            origin = f" in {config.config_file}" if config.sources[name] == "file" else ""
            raise ValueError(
                f"{spec.option} {config.get(name)}{origin} contradicts {name} {value} in {source}: "
                f"drop it, or start from a checkpoint of that shape"
            )
    return config.with_values(filled, "checkpoint")


def _without_replaced_grid(values: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """What a model says, less what belongs to image settings that the user replaced."""
    kept, explicit = dict(values), config.explicit
    if "image_aspect_ratio" in explicit and config.image.image_aspect_ratio in ("square", "pad"):
        # One view has no grid: the model's list goes with the mode that the user replaced.
        kept.pop("image_grid_pinpoints", None)
        kept.pop("grid_choice", None)
    if "image_grid_pinpoints" in explicit:
        # The order says how the list is written, so the model's is not the user's list's.
        kept.pop("pinpoint_order", None)
    return kept
