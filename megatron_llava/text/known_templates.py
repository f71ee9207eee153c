"""The conversation templates by name: LLaVA's strings."""

from __future__ import annotations

from megatron_llava.text.hf_template import hf_template
from megatron_llava.text.templates import Template
from megatron_llava.text.tokenizer import Tokenizer


def _vicuna(name: str, person: str) -> Template:
    return Template(
        name=name,
        add_bos=True,
        system=(
            f"A chat between a curious {person} and an artificial intelligence assistant. The "
            f"assistant gives helpful, detailed, and polite answers to the {person}'s questions."
        ),
        system_suffix=" ",
        human_prefix="USER: ",
        human_suffix=" ",
        answer_header="ASSISTANT:",
        answer_prefix=" ",
        answer_end="</s>",
        stop="</s>",
        special_tokens=("</s>",),
    )


def _qwen(name: str) -> Template:
    return Template(
        name=name,
        system="You are a helpful assistant.",
        system_prefix="<|im_start|>system\n",
        system_suffix="<|im_end|>\n",
        human_prefix="<|im_start|>user\n",
        human_suffix="<|im_end|>\n",
        answer_header="<|im_start|>assistant\n",
        answer_end="<|im_end|>\n",
        stop="<|im_end|>",
        special_tokens=("<|im_start|>", "<|im_end|>"),
        llava_header=True,
        llava_tokens=("\n", "<|im_start|>", "<|im_end|>"),
    )


def _instruct(name: str, system: str, turn_begin: str) -> Template:
    return Template(
        name=name,
        add_bos=True,
        system=system,
        system_prefix="<<SYS>>\n",
        system_suffix="\n<</SYS>>\n\n",
        system_in_turn=True,
        turn_begin=turn_begin,
        human_prefix="[INST] ",
        answer_header=" [/INST]",
        answer_prefix=" ",
        answer_end=" </s>",
        stop="</s>",
        special_tokens=("</s>",),
    )


def _chatml(name: str, system: str) -> Template:
    """No newline between turns, as LLaVA's MPT style has none."""
    return Template(
        name=name,
        add_bos=True,
        system=system,
        system_prefix="<|im_start|>system\n",
        system_suffix="<|im_end|>",
        human_prefix="<|im_start|>user\n",
        human_suffix="<|im_end|>",
        answer_header="<|im_start|>assistant\n",
        answer_end="<|im_end|>",
        stop="<|im_end|>",
        special_tokens=("<|im_start|>", "<|im_end|>"),
    )


def _llama_3_header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


_LANGUAGE_AND_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using "
    "natural language."
)
_LLAVA_LLAMA_3 = Template(
    name="llava_llama_3",
    begin="<|begin_of_text|>",
    system=_LANGUAGE_AND_VISION,
    system_prefix=_llama_3_header("system"),
    system_suffix="<|eot_id|>",
    human_prefix=_llama_3_header("user"),
    human_suffix="<|eot_id|>",
    answer_header=_llama_3_header("assistant"),
    answer_end="<|eot_id|>",
    strip_text=True,
    stop="<|eot_id|>",
    special_tokens=(
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
    llava_header=True,
    llava_tokens=(
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
)

_PLAIN = Template(name="plain", add_bos=True, images_only=True, answer_end="\n", stop="\n")
_V1 = _vicuna("v1", "user")

TEMPLATES: dict[str, Template] = {
    "plain": _PLAIN,
    "v1": _V1,
    "vicuna_v1": _V1,
    "llava_v1": _vicuna("llava_v1", "human"),
    "llava_llama_2": _instruct("llava_llama_2", _LANGUAGE_AND_VISION, "<s>"),
    "mistral_instruct": _instruct("mistral_instruct", "", ""),
    "chatml_direct": _chatml("chatml_direct", "Answer the questions."),
    "mpt": _chatml(
        "mpt",
        "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful "
        "and honest answers.",
    ),
    "qwen_1_5": _qwen("qwen_1_5"),
    "qwen_2": _qwen("qwen_2"),
    "llava_llama_3": _LLAVA_LLAMA_3,
}


OF_THE_TOKENIZER = ("prefix", "hf")
"""Names of templates that a tokenizer decides."""


def _prefix(tokenizer: Tokenizer) -> Template:
    """A caption format: BOS, images, caption, EOS; caption and EOS are trained."""
    end = tokenizer.eos_token
    if end is None:
        raise ValueError(
            "--conversation-template prefix ends with the end-of-sequence token, which the "
            "tokenizer lacks: use plain"
        )
    return Template(
        name="prefix",
        add_bos=True,
        images_only=True,
        answer_end=end,
        stop=end,
        special_tokens=(end,),
    )


def get_template(name: str, tokenizer: Tokenizer | None = None) -> Template:
    """The template called `name`; `hf` is the tokenizer's own, `prefix` ends with its EOS.

    Raises:
        ValueError: an unknown name, with the known ones; a tokenizer without a template.
    """
    if tokenizer is not None and name in OF_THE_TOKENIZER:
        return hf_template(tokenizer) if name == "hf" else _prefix(tokenizer)
    if name not in TEMPLATES:
        known = ", ".join((*TEMPLATES, *OF_THE_TOKENIZER))
        raise ValueError(f"--conversation-template {name}: unknown; use one of {known}")
    return TEMPLATES[name]
