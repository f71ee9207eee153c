"""Small images, a tiny tokenizer, and stores made of them."""

import ctypes
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plan_library import compile_plan
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.preprocess import PreprocessSettings, preprocess
from megatron_llava.data.row_plan_library import CompiledPlanner

SPECIAL_TOKENS = ["<|im_start|>", "<|im_end|>"]


def image_bytes(width: int, height: int, seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def record(number: int, sizes: list[tuple[int, int]], folder: Path, turns: int = 1) -> dict:
    """A record with rendered images and `turns` questions and answers of differing length."""
    names = []
    for index, (width, height) in enumerate(sizes):
        name = f"{number}_{index}.png"
        (folder / name).write_bytes(image_bytes(width, height, number * 10 + index))
        names.append(name)
    conversation = []
    for turn in range(turns):
        images = "<image>\n" * len(sizes) if turn == 0 else ""
        question = f"{images}What is shown in number {number}? " + "more " * (number % 5)
        conversation.append({"from": "human", "value": question})
        conversation.append({"from": "gpt", "value": f"Answer {turn} " + "word " * (number % 7)})
    made = {"id": f"r{number}", "conversations": conversation, "kind": "ignored"}
    if len(names) == 1:
        made["image"] = names[0]
    elif names:
        made["image"] = names
    return made


@pytest.fixture(scope="session")
def compiled_planner(tmp_path_factory) -> CompiledPlanner:
    """The C++ builder of this checkout, also where none is installed."""
    library = tmp_path_factory.mktemp("plan") / "plan.so"
    flags = ["-O2", "-ffp-contract=off", "-fPIC", "-shared"]
    return CompiledPlanner(ctypes.CDLL(str(compile_plan(library, *flags))))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(["What is shown in number? Answer word more word more"] * 3, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<|im_end|>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_settings() -> ImageSettings:
    """Tiles of 8 pixels with 4 patches each; bilinear rows come from anyres_max_2."""
    return ImageSettings(
        tile_size=8,
        patch_size=2,
        image_aspect_ratio="anyres_max_2",
        grid_pinpoints=tuple((8 * a, 8 * b) for a in (1, 2, 3) for b in (1, 2, 3)),
        mm_patch_merge_type="spatial_unpad",
        unpad_round="llava",
        resize_mode="squash",
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="session")
def records(image_folder) -> list[dict]:
    """40 records: no image, one of several shapes, and up to three images."""
    shapes: list[list[tuple[int, int]]] = [
        [(20, 9)],
        [],
        [(7, 30), (16, 16)],
        [(24, 24)],
        [(9, 9), (30, 11), (8, 21)],
        [(40, 12)],
        [(5, 5)],
    ]
    return [record(i, shapes[i % len(shapes)], image_folder, 1 + i % 3) for i in range(40)]


@pytest.fixture(scope="session")
def make_settings(image_folder, tokenizer_folder):
    """Preprocess settings for records (dumped as JSON beside the store) and changed fields."""

    def make(records: list, folder: Path, **changes) -> PreprocessSettings:
        path = folder / "data.json"
        path.write_text(json.dumps(records))
        values = {
            "input": path,
            "image_folder": image_folder,
            "tokenizer_model": str(tokenizer_folder),
            "output_prefix": folder / "store",
        }
        return PreprocessSettings(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def store_prefix(records, make_settings, tmp_path_factory) -> Path:
    settings = make_settings(records, tmp_path_factory.mktemp("store"))
    preprocess(settings)
    return settings.output_prefix


@pytest.fixture
def store(store_prefix):
    from megatron_llava.data.store import Store

    return Store(store_prefix)
