"""Videos from the record to the packed batch: frames and tokens are those of transformers."""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from published_settings import ONEVISION
from transformers.video_utils import read_video_pyav

from megatron_llava.config.run import RunConfig
from megatron_llava.data.collate import collate
from megatron_llava.data.describe import describe_sample
from megatron_llava.data.html_view import samples_page
from megatron_llava.data.pack_pixels import views_of
from megatron_llava.data.packing import sample_sizes
from megatron_llava.data.preprocess import preprocess
from megatron_llava.data.row_plan import NumpyPlanner
from megatron_llava.data.statistics import statistics
from megatron_llava.data.store import Store
from megatron_llava.data.stored_video import pack_frames, pack_video, unpack_frames
from megatron_llava.data.visual_flags import add_video_flags, visual_settings
from megatron_llava.text.tokenizer import load_tokenizer
from megatron_llava.training.packs import opened_store
from megatron_llava.vision.frames import (
    FrameSampling,
    decode_frames,
    sampled_frames,
    video_length,
)


def frame(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A picture that tells its number: a bar that moves, on a colour that changes."""
    width, height = size
    pixels = np.full((height, width, 3), (number * 5 % 256, 90, 255 - number * 5 % 256), np.uint8)
    pixels[:, number % width] = 255
    return pixels


def clip(num_frames: int, fps: int = 10, suffix: str = "mp4", codec: str = "mpeg4") -> bytes:
    """A rendered clip, encoded by PyAV."""
    file = io.BytesIO()
    with av.open(file, "w", format={"mkv": "matroska"}.get(suffix, suffix)) as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(num_frames):
            picture = av.VideoFrame.from_ndarray(frame(number), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "long.mp4").write_bytes(clip(500))
    (folder / "short.mkv").write_bytes(clip(23, suffix="mkv"))
    (folder / "slow.mp4").write_bytes(clip(7, fps=1))
    frames = folder / "frames"
    frames.mkdir()
    for number in range(37):
        Image.fromarray(frame(number)).save(frames / f"{number:04d}.png")
    Image.fromarray(frame(3, (400, 300))).save(folder / "image.png")
    return folder


def record(video: str | list[str], question: str = "<video>\nWhat?", **more) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A bar."}]
    return {"video": video, "conversations": turns, **more}


@pytest.fixture
def stored(make_settings, videos, tmp_path):
    def make(*records, **changes) -> Store:
        settings = make_settings(list(records), tmp_path, image_folder=videos, **changes)
        preprocess(settings, log=io.StringIO())
        return Store(settings.output_prefix)

    return make


@pytest.mark.proves("A11")
@pytest.mark.parametrize(
    ("frames", "fps", "sampling", "expected"),
    [
        (300, 30.0, {}, list(range(0, 300, 30))),
        (300, 29.97, {}, list(range(0, 300, 30))),
        (300, 30.0, {"video_fps": 2}, list(range(0, 300, 15))),
        (7, 1.0, {}, list(range(7))),
        (7, 0.3, {}, list(range(7))),
        (3, 30.0, {}, [0]),
        (1000, 10.0, {"frames_upbound": 5}, [0, 249, 499, 749, 999]),
        (40, 10.0, {"frames_upbound": 5}, [0, 10, 20, 30]),
        (40, 10.0, {"frames_upbound": 5, "force_sample": True}, [0, 9, 19, 29, 39]),
        (2, 10.0, {"frames_upbound": 4, "force_sample": True}, [0, 0, 0, 1]),
        (90, 1.0, {"frames_upbound": 0}, list(range(90))),
        (90, 30.0, {"all_frames": True}, list(range(90))),
    ],
)
def test_which_frames_are_taken(frames, fps, sampling, expected):
    assert sampled_frames(frames, fps, FrameSampling(**sampling)).tolist() == expected


@pytest.mark.parametrize("name", ["long.mp4", "short.mkv"])
def test_frames_are_those_of_transformers(videos, name):
    data = (videos / name).read_bytes()
    count, fps = video_length(data, name)
    assert (count, fps) == ({"long.mp4": 500, "short.mkv": 23}[name], 10.0)
    numbers = sampled_frames(count, fps, FrameSampling(frames_upbound=32)).tolist()
    theirs, _ = read_video_pyav(str(videos / name), lambda metadata, **_: numbers)
    ours = np.stack([np.asarray(one) for one in decode_frames(data, numbers, name)])
    np.testing.assert_array_equal(ours, theirs)
    # And they are the pictures that were drawn, as far as the codec keeps them.
    drawn = np.stack([frame(number) for number in numbers])
    assert np.abs(ours.astype(int) - drawn).mean() < 12


@pytest.mark.proves("A10")
def test_thirty_two_frames_are_6273_tokens(stored, videos):
    store = stored(record("long.mp4"))
    sample = store.load(0)
    assert sample.image_sizes == ((32, 0),)
    lengths, views = sample_sizes(store, ONEVISION)
    batch = collate([sample], ONEVISION)
    text = len(sample.token_ids) - 1
    assert lengths.tolist() == [6273 + text] == [batch.num_rows]
    assert views.tolist() == [32] == [batch.num_views]
    assert (batch.weights != 0).any(axis=1).all()
    # Transformers: 14 x 14 pooled features of each frame, and one newline.
    per_frame = ((ONEVISION.patches_per_side + 1) // 2) ** 2
    assert lengths[0] - text == 32 * per_frame + 1


@pytest.mark.proves("B10")
def test_a_store_with_more_frames_than_the_temporal_encoder_knows(stored):
    made = stored(record("slow.mp4"), record("long.mp4"))

    def opened(most: int, layers: int = 1):
        flags = {"temporal_encoder_layers": layers, "temporal_encoder_max_frames": most}
        config = RunConfig().with_values(flags, "flag")
        return opened_store(str(made.prefix), config, ONEVISION, print)

    with pytest.raises(
        ValueError, match=r"sample 1 .* 32 frames, more .*-max-frames 31 \(1 videos"
    ):
        opened(31)
    assert len(opened(32)) == len(opened(1, layers=0)) == 2


@pytest.mark.proves("A11")
@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"mm_newline_position": "grid"}, 32 * 14 * 15),
        ({"mm_newline_position": "frame"}, 32 * 197),
        ({"mm_newline_position": "no_token"}, 32 * 196),
        ({"mm_spatial_pool_mode": "average"}, 32 * 169 + 1),
        ({"mm_spatial_pool_stride": 1}, 32 * 729 + 1),
        ({"mm_patch_merge_type": "spatial"}, 32 * 196),
    ],
)
def test_every_newline_position_and_pooling(stored, changes, tokens):
    store = stored(record("long.mp4"))
    settings = replace(ONEVISION, **changes)
    lengths, _ = sample_sizes(store, settings)
    batch = collate([store.load(0, with_images=False)], settings, with_pixels=False)
    assert lengths[0] == batch.num_rows == tokens + store.text_lengths[0]


def test_pixels_are_the_frames_squashed(stored, videos):
    store = stored(record("long.mp4", "<image>\nWhat?"))
    views = views_of(store.load(0), 0, ONEVISION)
    data = (videos / "long.mp4").read_bytes()
    numbers = np.linspace(0, 499, 32, dtype=int).tolist()
    for view, picture in zip(views, decode_frames(data, numbers, "x"), strict=True):
        squashed = picture.resize((384, 384), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(view, np.asarray(squashed).transpose(2, 0, 1))
    batch = collate([store.load(0)], ONEVISION)
    np.testing.assert_array_equal(batch.tiles, views)


def test_the_video_file_is_kept_as_it_is(stored, videos):
    store = stored(record("long.mp4"), record("slow.mp4"))
    assert store.images(0)[0].endswith((videos / "long.mp4").read_bytes())
    assert store.manifest["counts"]["videos"] == 2
    assert store.load(1).image_sizes == ((7, 0),)


@pytest.mark.parametrize(
    ("flags", "count"),
    [({}, 10), ({"frames_upbound": 4}, 10), ({"frames_upbound": 4, "force_sample": True}, 4)],
)
def test_a_folder_of_frames(stored, videos, flags, count):
    store = stored(record("frames"), add_time_instruction=True, **flags)
    sample = store.load(0)
    assert sample.image_sizes == ((count, 0),)
    numbers = np.linspace(0, 36, count, dtype=int)
    views = views_of(
        sample,
        0,
        replace(ONEVISION, tile_size=48, patch_size=8, image_aspect_ratio="pad", grid_pinpoints=()),
    )
    assert len(views) == count
    first = Image.fromarray(frame(int(numbers[1]))).resize((48, 48), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(views[1], np.asarray(first).transpose(2, 0, 1))


@pytest.mark.proves("F1")
def test_every_frame_of_files_and_folders(stored, videos):
    several = record(["long.mp4", "slow.mp4", "frames"], "<video><video><video>")
    store = stored(several, all_frames=True)
    counts = [500, 7, len(list((videos / "frames").iterdir()))]
    assert counts[2] > 10 and [size[0] for size in store.image_sizes.tolist()] == counts


@pytest.mark.proves("F1")
@pytest.mark.parametrize("workers", [1, 2])
def test_frames_that_a_function_of_the_user_chooses(stored, videos, workers):
    several = record(["long.mp4", "short.mkv", "frames"], "<video><video><video>")
    store = stored(
        several, frame_sampler="frame_samplers:sparse", frames_upbound=9, workers=workers
    )
    assert store.manifest["provenance"]["flags"]["frame_sampler"] == "frame_samplers:sparse"
    sparse = [0, 1, 3, 6, 10, 15, 21, 28, 36]
    numbers = {"long.mp4": sparse, "short.mkv": sparse[:7]}
    assert [size[0] for size in store.image_sizes.tolist()] == [9, 7, 9]
    of_files, folder = store.images(0)[:2], store.images(0)[2]
    for item, (name, expected) in zip(of_files, numbers.items(), strict=True):
        assert item == pack_video((videos / name).read_bytes(), expected)
    files = [videos / "frames" / f"{number:04d}.png" for number in sparse]
    assert folder == pack_frames([file.read_bytes() for file in files])


@pytest.mark.proves("F1")
def test_a_function_of_the_user_may_look_at_the_frames(stored):
    """Those of ``frame`` that are bluest, in a file and in a folder."""
    store = stored(
        record(["long.mp4", "frames"], "<video><video>"),
        frame_sampler="frame_samplers:blue",
        frames_upbound=4,
    )
    for item in store.images(0):
        blues = [np.asarray(one)[..., 2].mean() for one in unpack_frames(item, "x")]
        drawn = [frame(number)[..., 2].mean() for number in range(4)]
        np.testing.assert_allclose(blues, drawn, atol=4)


def test_a_function_of_the_user_knows_the_rate_of_frames(stored):
    given = {"frame_sampler": "frame_samplers:each_second", "frames_upbound": 0}
    store = stored(record("long.mp4"), record("slow.mp4"), record("frames"), **given)
    assert [size[0] for size in store.image_sizes.tolist()] == [50, 7, 19]


def test_what_the_user_chose_is_not_called_uniform(stored, tokenizer_folder):
    given = {"frame_sampler": "frame_samplers:sparse", "add_time_instruction": True}
    store = stored(record("short.mkv"), **given)
    tokenizer = load_tokenizer(str(tokenizer_folder), "auto")
    text = describe_sample(store, 0, tokenizer, ONEVISION)
    assert "and 7 frames are sampled from it. These frames are located at 0.00s,0.10s,0.30s" in text


@pytest.mark.proves("F1")
@pytest.mark.parametrize(
    ("name", "video", "message"),
    [
        ("too_many", "long.mp4", "takes 500 frames, more than --frames-upbound 32"),
        ("too_many", "frames", "takes 37 frames, more than --frames-upbound 32"),
        ("fails", "long.mp4", "failed: KeyError: 500"),
    ],
)
def test_a_wrong_function_of_the_user_is_named_with_the_file(stored, name, video, message):
    with pytest.raises(ValueError) as caught:
        stored(record(video), frame_sampler=f"frame_samplers:{name}")
    said = str(caught.value)
    assert "data.json: record 0: video " in said and "\n" not in said
    assert f"{video}: --frame-sampler frame_samplers:{name} {message}" in said


def test_both_tools_take_the_function_from_their_command_line():
    parser = argparse.ArgumentParser()
    add_video_flags(parser)
    parser.set_defaults(image_folder=None)

    def sampling(*flags):
        return visual_settings(parser.parse_args(flags), verify=False).sampling

    assert sampling() == FrameSampling()
    name = "frame_samplers:sparse"
    found = sampling("--frame-sampler", name, "--frames-upbound", "8")
    assert found == FrameSampling(frame_sampler=name, frames_upbound=8)
    with pytest.raises(ValueError, match="^--frame-sampler nowhere:f: expected MODULE:FUNCTION"):
        sampling("--frame-sampler", "nowhere:f")


def test_the_time_instruction(stored, make_settings, tokenizer_folder, videos):
    store = stored(
        record("long.mp4", "What happens? <video>"), frames_upbound=3, add_time_instruction=True
    )
    tokenizer = load_tokenizer(str(tokenizer_folder), "auto")
    text = describe_sample(store, 0, tokenizer, ONEVISION)
    assert (
        "<image>\nThe video lasts for 50.00 seconds, and 3 frames are uniformly sampled from it. "
        "These frames are located at 0.00s,24.90s,49.90s.Please answer the following questions "
        "related to this video.\nWhat happens?" in text
    )
    assert f"video 0: 3 frames, {3 * 196 + 1} visual tokens" in text


def test_videos_among_images(stored, tokenizer_folder):
    """An image beside a video is alone in its sample, as in transformers, and keeps its tiles."""
    both = record("slow.mp4", "<image> or <video>?", image="image.png")
    store = stored(both, record(["slow.mp4", "long.mp4"], "<image> and <image>", id="two"))
    sample, two = store.load(0), store.load(1)
    assert sample.image_sizes == ((400, 300), (7, 0))
    assert two.image_sizes == ((7, 0), (32, 0))
    lengths, views = sample_sizes(store, ONEVISION)
    batch = collate([sample, two], ONEVISION)
    assert np.diff(batch.cu_seqlens).tolist() == lengths.tolist()
    assert batch.num_views == views.sum() == len(batch.tiles)
    assert views[0] > 7 + 1
    plain = collate([sample, two], ONEVISION, with_pixels=False, planner=NumpyPlanner())
    np.testing.assert_array_equal(plain.taps, batch.taps)
    tokenizer = load_tokenizer(str(tokenizer_folder), "auto")
    page = samples_page(store, [0, 1], tokenizer, ONEVISION)
    assert page.count("<img") == batch.num_views and "video 1: 7 frames" in page
    assert "3 of them videos" in statistics(store, ONEVISION)


def test_a_share_of_the_views_of_a_video(stored):
    sample = stored(record("slow.mp4")).load(0)
    whole = collate([sample], ONEVISION).tiles
    parts = [collate([sample], ONEVISION, view_share=(rank, 2)).tiles for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.proves("A10")
def test_merged_features_are_those_of_transformers(stored):
    """The model's rows for a stored video against get_video_features' pooling and newline."""
    from types import SimpleNamespace

    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    sample = stored(record("slow.mp4", "<video>")).load(0)
    batch = collate([sample], ONEVISION)
    generator = torch.manual_seed(0)
    features = torch.randn(7, 729, 4, generator=generator)
    newline, words = torch.randn(1, 4, generator=generator), torch.zeros(len(batch.token_ids), 4)
    table = torch.cat([features.flatten(0, 1), newline, words])
    rows = (table[torch.tensor(batch.taps)] * torch.tensor(batch.weights)[:, :, None]).sum(1)
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=384, patch_size=14))
    pooled = LlavaOnevisionModel.apply_pooling(SimpleNamespace(config=config), features)
    theirs = torch.cat([pooled.flatten(0, 1), newline])
    place = int(np.flatnonzero(sample.token_ids == -200)[0])
    torch.testing.assert_close(rows[place : place + len(theirs)], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (record("absent.mp4"), r"absent\.mp4: No such file"),
        (record("cut.mp4"), r"cut\.mp4: (cannot read a video|ends after|a video of 0)"),
        (record("image.png", "<video> <video>"), "2 <video> placeholders .* 1 videos"),
        (record("slow.mp4", "no placeholder"), "0 <video> placeholders .* 1 videos"),
        (record("slow.mp4", "<image>", image="image.png"), "0 <video> placeholders .* 1 videos"),
        (record("text.mp4"), r"text\.mp4: cannot read a video from its 5 bytes"),
        (record("empty"), "empty: holds no frame"),
        (record("../x.mp4"), r"video \.\./x\.mp4 is not inside --video-folder"),
        (record(7), "'video' must be a path"),
        (record("silent.wav"), r"silent\.wav: no video stream"),
    ],
)
def test_bad_videos_are_bad_records(stored, videos, made, message):
    (videos / "cut.mp4").write_bytes((videos / "long.mp4").read_bytes()[:20_000])
    (videos / "text.mp4").write_bytes(b"hello")
    (videos / "empty").mkdir(exist_ok=True)
    silent = io.BytesIO()
    with av.open(silent, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    (videos / "silent.wav").write_bytes(silent.getvalue())
    with pytest.raises(ValueError, match=message) as error:
        stored(made)
    assert "\n" not in str(error.value)


def test_frames_too_thin_to_crop_are_named(stored, videos):
    strips = videos / "strips"
    strips.mkdir()
    Image.new("RGB", (40_000, 1)).save(strips / "0.png")
    sample = stored(record("strips")).load(0)
    cropping = replace(ONEVISION, resize_mode="shortest_edge_crop")
    with pytest.raises(ValueError, match=r"sample 0 .*: video 0: image of 40000x1 pixels: scaling"):
        views_of(sample, 0, cropping)


def test_videos_in_tar_files(stored, make_settings, videos, tmp_path):
    """Named by a record, not named, and beside a caption: the items of a folder's videos."""
    expected = stored(record("long.mp4"), record(["long.mp4", "short.mkv"], "<video><video>?"))
    path = tmp_path / "v.tar"
    both = {"a.long.mp4": "long.mp4", "a.short.mkv": "short.mkv"}
    asked = record("", "<video>What?")
    del asked["video"]
    with tarfile.open(path, "w") as archive:
        for name, content in (
            ("a.json", json.dumps(record("long.mp4"))),
            *both.items(),
            ("b.json", json.dumps(record(["long.mp4", "short.mkv"], "<video><video>?"))),
            *((name.replace("a.", "b."), video) for name, video in both.items()),
            ("c.json", json.dumps(asked)),
            ("c.mp4", "long.mp4"),
            ("d.txt", "A caption."),
            ("d.mp4", "long.mp4"),
            ("e.json", json.dumps(record("short.mkv"))),
            ("e.mp4", "long.mp4"),
        ):
            is_video = name.endswith(("mp4", "mkv"))
            data = (videos / content).read_bytes() if is_video else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    settings = make_settings([], tmp_path, input=path, max_bad_records=1, overwrite=True)
    log = io.StringIO()
    preprocess(settings, log=log)
    assert "v.tar: sample e: 0 videos of the sample are called short.mkv" in log.getvalue()
    store = Store(settings.output_prefix)
    items = [store.images(index) for index in range(len(store))]
    long, pair = expected.images(0), expected.images(1)
    assert items == [long, pair, long, long]
    assert store.image_sizes.tolist()[0] == expected.image_sizes.tolist()[0]


def test_a_time_instruction_is_for_one_video(stored):
    with pytest.raises(ValueError, match="--add-time-instruction is for one video, this record"):
        stored(record(["slow.mp4"] * 2, "<video><video>"), add_time_instruction=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_fps": 0}, "--video-fps 0: expected at least 1"),
        ({"frames_upbound": -1}, "--frames-upbound -1"),
        ({"frames_upbound": 0, "force_sample": True}, "--force-sample takes --frames-upbound"),
        ({"all_frames": True, "force_sample": True}, "--all-frames takes every frame: drop"),
        ({"all_frames": True, "frames_upbound": 8}, "--all-frames takes every frame: drop"),
        ({"frame_sampler": "a:b", "all_frames": True}, "--frame-sampler a:b chooses the frames"),
        ({"frame_sampler": "a:b", "video_fps": 2}, "--frame-sampler a:b chooses .* --video-fps"),
        ({"frame_sampler": "a:b", "force_sample": True}, "--frame-sampler a:b chooses"),
        ({"frame_sampler": "nowhere:f"}, "^--frame-sampler nowhere:f: expected MODULE:FUNCTION"),
        ({"video_folder": Path("/absent")}, "--video-folder /absent: no such directory"),
    ],
)
def test_refused_flags(stored, changes, message):
    with pytest.raises(ValueError, match=message):
        stored(record("slow.mp4"), **changes)
