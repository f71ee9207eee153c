"""What of a checkpoint's optimizer state is refused before it is read."""

import pytest


def test_state_of_an_older_version_is_refused(make_parts):
    """It says nothing of how it stored the optimizer state."""
    from megatron_llava.parallel.checkpoint_directory import CheckpointError
    from megatron_llava.training.checkpoint_layout import check_optimizer

    parts = make_parts()
    older = {
        "has_optimizer": True,
        "lr_multiples": [1.0],
        "layout": {"tensor": 1, "pipeline": 1, "data": 1},
        "optimizer_sharding": "dp_reshardable",
    }
    with pytest.raises(CheckpointError) as caught:
        check_optimizer("runs/a: step 3", older, parts.optimizer, [parts.model])
    message = str(caught.value)
    assert message.startswith("runs/a: step 3 was saved by an older version")
    assert "--no-load-optim" in message and "\n" not in message
