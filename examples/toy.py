"""Tiny random weights and drawn pictures for the examples' TOY=1, of the quickstart's makers.

    python examples/toy.py FOLDER

Writes FOLDER/hf (a LLaVA of transformers), FOLDER/language_model and FOLDER/vision_tower (what
stage 1 starts from), and FOLDER/data with images.json, several.json and video.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw
from transformers import CLIPVisionModel, LlavaNextForConditionalGeneration, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).parent / "quickstart"))
import make_checkpoint
import render_dataset

FRAMES = 8
# Of the templates v1 and llava_llama_3, beside the quickstart's own.
SPECIAL_TOKENS = ["<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL_TOKENS += ["<|begin_of_text|>"]
SIZES = "--layers 2 --hidden-size 64 --intermediate-size 128 --vision-layers 2 "
SIZES += "--vision-hidden-size 64"


def write_data(data: Path) -> None:
    """Questions about one picture, about two, and about a clip as a folder of frames."""
    render_dataset.main(["--output", str(data), "--train", "32", "--valid", "5"])
    (data / "train.json").rename(data / "images.json")
    records = json.loads((data / "images.json").read_text())
    several = []
    for one, two in zip(records[::2], records[1::2], strict=True):
        question, answer = "<image>\n<image>\nTell of both.", "Two pictures."
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        pair = [one["image"], two["image"]]
        several.append({"id": one["id"], "image": pair, "conversations": turns})
    (data / "several.json").write_text(json.dumps(several))
    clips = []
    for number, colour in enumerate(render_dataset.COLOURS):
        folder = data / "clips" / colour
        folder.mkdir(parents=True)
        for frame in range(FRAMES):
            image = Image.new("RGB", (84, 56), "white")
            ImageDraw.Draw(image).rectangle((8 * frame, 20, 8 * frame + 20, 40), fill=colour)
            image.save(folder / f"{frame:03d}.png")
        turns = [
            {"from": "human", "value": "<video>\nWhat color moves?"},
            {"from": "gpt", "value": colour},
        ]
        clips.append({"id": str(number), "video": f"clips/{colour}", "conversations": turns})
    (data / "video.json").write_text(json.dumps(clips))


def write_models(output: Path) -> None:
    """A whole model, and its language model and vision tower as they are published alone."""
    args = make_checkpoint.parse_arguments(
        ["--output", str(output / "hf"), "--data", str(output / "data/images.json"), *SIZES.split()]
    )
    tokenizer = make_checkpoint.make_tokenizer(args.data, args.vocab_size)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    tokenizer.bos_token, tokenizer.eos_token = "<s>", make_checkpoint.TURN_END
    config = make_checkpoint.make_config(tokenizer, args)
    LlavaNextForConditionalGeneration(config).save_pretrained(output / "hf")
    make_checkpoint.make_processor(tokenizer).save_pretrained(output / "hf")
    Qwen2ForCausalLM(config.text_config).save_pretrained(output / "language_model")
    tokenizer.save_pretrained(output / "language_model")
    CLIPVisionModel(config.vision_config).save_pretrained(output / "vision_tower")
    make_checkpoint.make_processor(tokenizer).image_processor.save_pretrained(
        output / "vision_tower"
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_data(folder / "data")
    write_models(folder)
