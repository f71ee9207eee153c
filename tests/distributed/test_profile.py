"""Traces of some steps of a run, read back."""

import json

from distributed_jobs import train


def test_a_trace_holds_the_steps_of_the_window(pool, setup, tmp_path):
    window = ["--profile", "--profile-step-start=2", "--profile-step-end=4", "--profile-ranks=1"]
    flags = [*window, "--use-pytorch-profiler", f"--tensorboard-dir={tmp_path / 'events'}"]
    pool.run(train, setup.arguments(*flags), world_size=2)
    (path,) = (tmp_path / "events").iterdir()
    assert path.name == "rank-1.steps-3-4.pt.trace.json"
    events = json.loads(path.read_text())["traceEvents"]
    steps = {e["name"]: e for e in events if e.get("cat") == "user_annotation"}
    assert {name for name in steps if name.startswith("step ")} == {"step 3", "step 4"}
    products = [e for e in events if e.get("name") == "aten::mm"]
    for name in ("step 3", "step 4"):
        start, end = steps[name]["ts"], steps[name]["ts"] + steps[name]["dur"]
        within = [e for e in products if start <= e["ts"] <= end]
        # Two microbatches of this rank, forward and backward of every linear.
        assert len(within) > 50, name
