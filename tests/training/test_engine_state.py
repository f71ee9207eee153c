"""What Transformer Engine does not take of core's state, or of ours; it is not installed here."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("cpu_platform")


def test_a_mark_of_padding_is_no_item_of_a_share():
    from megatron_llava.training.optimizer_state import _hide_marks

    share = {"param": 1, "exp_avg": 2, "padding": False}
    content = {
        "param_state_sharding_type": "dp_reshardable",
        "param_state": {0: {"float32": [[share], [{"param": 3, "padding": True}]]}, "numel": [5]},
    }
    _hide_marks(content)
    (first,), (second,) = content["param_state"][0]["float32"]
    # Core asks for the mark by its name, and hands on the items.
    assert not first["padding"] and second["padding"]
    assert dict(first.items()) == {"param": 1, "exp_avg": 2}
    assert content["param_state"]["numel"] == [5]


def test_what_stays_on_the_gpu_counts_its_own_steps():
    from megatron_llava.training.optimizer_state import _count_on

    on_gpu = SimpleNamespace(param_groups=[{"lr": 1.0}, {"lr": 2.0, "step": 3}])
    hybrid = SimpleNamespace(param_groups=[{"step": 500}, {"step": 500}], gpu_optimizer=on_gpu)
    _count_on(hybrid)
    assert hybrid.param_groups == [{}, {}]
    assert on_gpu.param_groups == [{"lr": 1.0, "step": 500}, {"lr": 2.0, "step": 500}]
    hybrid = SimpleNamespace(param_groups=[{"step": 4}], gpu_optimizer=None)
    _count_on(hybrid)
    assert hybrid.param_groups == [{}]


class OfEngine(torch.nn.Linear):
    """A module with state of its own in Transformer Engine's way: a dict is refused."""

    def get_extra_state(self):
        return torch.tensor(0)

    def set_extra_state(self, state):
        if isinstance(state, dict):
            raise RuntimeError("Unsupported checkpoint format.")
        self.state = state


def test_scales_of_emulated_fp8_are_not_given_to_another():
    from megatron_llava.training.held_weights import put

    model = torch.nn.Sequential(OfEngine(2, 2, bias=False), OfEngine(2, 2, bias=False))
    loaded = {
        "0.weight": torch.ones(2, 2),
        "1.weight": torch.ones(2, 2),
        "0._extra_state": {"scale": torch.ones(1)},
        "1._extra_state": torch.tensor(7),
    }
    put("root", [model], {"model": set(loaded)}, {"model": loaded})
    assert torch.equal(model[0].weight, torch.ones(2, 2))
    assert not hasattr(model[0], "state") and model[1].state == 7


@pytest.mark.parametrize(
    ("recipe", "changes", "rows"),
    [
        ("delayed", {}, 16),
        ("delayed", {"tensor_model_parallel_size": 2, "sequence_parallel": True}, 32),
        ("blockwise", {}, 16),
        ("blockwise", {"tensor_model_parallel_size": 2}, 16),
        ("blockwise", {"tensor_model_parallel_size": 2, "sequence_parallel": True}, 256),
    ],
)
def test_a_rank_has_rows_for_whole_blocks(recipe, changes, rows):
    from megatron_llava.config.run import RunConfig
    from megatron_llava.training.batches import row_multiple

    values = {"fp8_format": "hybrid", "fp8_recipe": recipe, **changes}
    assert row_multiple(RunConfig().with_values(values, "flag")) == rows


def test_flash_attention_of_transformer_engine_is_a_package(monkeypatch):
    from megatron_llava.platform import device

    monkeypatch.setattr(device, "find_spec", lambda name: None)
    device.check_flash_attention("local", "flash")
    device.check_flash_attention("transformer_engine", "auto")
    with pytest.raises(ValueError, match="needs flash-attn, which is not installed: install"):
        device.check_flash_attention("transformer_engine", "flash")
