"""The same questions asked of an exported folder with ``transformers``, as its users would ask."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from megatron_llava.config.image import ImageSettings
from megatron_llava.convert.hf_images import VIEWS_OF_CLASS
from megatron_llava.data.collate import collate
from megatron_llava.data.row_plan import is_video
from megatron_llava.inference.questions import Question
from megatron_llava.models.llava import LlavaModel
from megatron_llava.text.constants import IMAGE_PLACEHOLDER, IMAGE_TOKEN_INDEX
from megatron_llava.text.tokenizer import Tokenizer
from megatron_llava.vision.token_layout import number_of_tokens


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One question.

    Attributes:
        answer: what transformers generated, decoded and trimmed.
        max_difference: largest absolute difference of the logits over all positions of the prompt.
    """

    answer: str
    max_difference: float


class HFFolder:
    """A Hugging Face LLaVA folder with its processor.

    Args:
        folder: config, weights, tokenizer, processor and chat template.
        device: where it computes, in float32.

    Raises:
        ValueError: one line naming the folder, where transformers cannot read it.
    """

    def __init__(self, folder: str, device: torch.device) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
        # transformers raises many kinds for a folder that it cannot use.
        except Exception as error:
            first_line = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{folder}: transformers cannot read it as a LLaVA folder: {first_line}"
            ) from error
        if self.processor.chat_template is None:
            raise ValueError(f"{folder}: has no chat template to ask a question with")
        self.model = model.eval().to(device)
        self.device = device

    def inputs(self, question: Question) -> dict[str, torch.Tensor]:
        """What the folder's own chat template and processor make of a question."""
        text = question.text.replace(IMAGE_PLACEHOLDER, "").strip()
        pictures = [Image.open(io.BytesIO(d)).convert("RGB") for d in question.prompt.images or ()]
        images = [{"type": "image", "image": picture} for picture in pictures]
        message = {"role": "user", "content": [*images, {"type": "text", "text": text}]}
        # In one call, which knows whether the template has written the first token already.
        inputs = self.processor.apply_chat_template(
            [message],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return inputs.to(self.device)

    def image_token(self) -> int:
        """The id that stands for one visual token."""
        return int(self.model.config.image_token_index)


@torch.no_grad()
def compare_question(
    question: Question,
    model: LlavaModel,
    settings: ImageSettings,
    hf: HFFolder,
    tokenizer: Tokenizer,
    max_new_tokens: int,
) -> Comparison:
    """Compare token ids, the logits at every position of the prompt, and answer with transformers.

    Raises:
        ValueError: the folder's processor makes other token ids of the question than ours, or the
            question has several images, which training laid out otherwise.
    """
    if any(is_video(size) for size in question.prompt.image_sizes):
        raise ValueError(f"{question.prompt.source}: has a video; only images are compared")
    theirs = VIEWS_OF_CLASS[hf.model.config.model_type]
    if len(question.images) > 1 and settings.multi_image_views != theirs:
        raise ValueError(
            f"{question.prompt.source}: has {len(question.images)} images; training gave each of "
            f"them the views of {settings.multi_image_views} and transformers gives {theirs}, so "
            "there is nothing to compare"
        )
    inputs = hf.inputs(question)
    expected = _expanded(question, settings, hf.image_token())
    found = inputs["input_ids"][0].tolist()
    if found != expected:
        raise ValueError(
            f"{question.prompt.source}: the folder's processor makes {len(found)} tokens of the "
            f"prompt, training made {len(expected)}, and they differ; check its chat template"
        )
    reference_RW = hf.model(**inputs).logits[0].float()
    batch = collate([question.prompt], settings).to_torch(hf.device)
    rows = torch.arange(batch.num_rows, device=hf.device)
    logits_RW = model.logits(model.decode(batch), rows)[:, : model.vocab_size].float()
    difference = (logits_RW - reference_RW).abs().max()
    output = hf.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    answer = tokenizer.decode(output[0, len(found) :].tolist()).strip()
    return Comparison(answer=answer, max_difference=float(difference))


def _expanded(question: Question, settings: ImageSettings, image_token: int) -> Sequence[int]:
    """Our prompt ids with the placeholder of each image repeated for its visual tokens."""
    ids: list[int] = []
    single_view = settings.single_view(len(question.prompt.image_sizes))
    sizes = iter(question.prompt.image_sizes)
    for token in question.prompt.token_ids.tolist():
        if token == IMAGE_TOKEN_INDEX:
            ids += [image_token] * number_of_tokens(next(sizes), settings, single_view=single_view)
        else:
            ids.append(token)
    return ids
