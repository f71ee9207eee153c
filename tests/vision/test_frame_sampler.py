"""What a function of --frame-sampler may return."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_llava.vision.frame_sampler import VideoFrames, chosen_frames


@pytest.fixture
def take(monkeypatch):
    """The frames chosen where the function returns a value."""

    def chosen(value, upbound=4):
        import frame_samplers

        monkeypatch.setattr(frame_samplers, "sparse", lambda video: value)
        video = VideoFrames(
            source="record 3: video a.mp4", num_frames=9, fps=2.0, frames_upbound=upbound, decode=[]
        )
        return chosen_frames("frame_samplers:sparse", video)

    return chosen


@pytest.mark.parametrize(
    "value", [[0, 3, 8], (0, 3, 8), np.array([0, 3, 8], np.uint16), torch.tensor([0, 3, 8])]
)
def test_increasing_numbers_are_taken(take, value):
    found = take(value)
    assert found.tolist() == [0, 3, 8] and found.dtype == np.int64


def test_the_bound_itself_and_no_bound(take):
    assert take(range(4)).tolist() == list(range(4))
    assert take(range(9), upbound=0).tolist() == list(range(9))


def test_the_function_of_the_manual_takes_the_cuts(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    code = text.split("--frame-sampler MODULE:FUNCTION")[1].split("```python")[1].split("```")[0]
    (tmp_path / "of_the_manual.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    greys = [90] * 5 + [200] * 6 + [20] * 9
    video = VideoFrames(
        source="cuts",
        num_frames=20,
        fps=4.0,
        frames_upbound=3,
        decode=lambda numbers: [Image.new("RGB", (8, 6), (greys[n],) * 3) for n in numbers],
    )
    assert chosen_frames("of_the_manual:changing", video).tolist() == [0, 5, 11]
    sys.modules.pop("of_the_manual")


@pytest.mark.proves("F1")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "takes 0 of 9 frames: expected at least 1"),
        ([0, 9], "takes frame 9 of 9: expected 0 to 8"),
        ([-1, 0], "takes frame -1 of 9: expected 0 to 8"),
        ([0, 5, 4], "takes frame 4 after frame 5: expected increasing ones"),
        ([0, 5, 5], "takes frame 5 after frame 5: expected increasing ones"),
        (range(5), "takes 5 frames, more than --frames-upbound 4"),
        ([0.0, 1.0], r"returned float64 [2], expected a list of frame numbers"),
        ([True] * 3, r"returned bool [3], expected a list of frame numbers"),
        ([[0], [1]], r"returned int64 [2, 1], expected a list of frame numbers"),
        (5, r"returned int64 [], expected a list of frame numbers"),
        (None, r"returned object [], expected a list of frame numbers"),
        ([[0], [1, 2]], "failed: ValueError: "),
    ],
)
def test_anything_else_is_an_error(take, value, message):
    with pytest.raises(ValueError) as caught:
        take(value)
    said = str(caught.value)
    start = f"record 3: video a.mp4: --frame-sampler frame_samplers:sparse {message}"
    assert said.startswith(start) and "\n" not in said
