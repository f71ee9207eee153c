"""Conversation templates: the text around each turn and which of it is trained on.

A template renders turns to segments, each wholly supervised or wholly not. Labels follow from the
segments, never from the length of text tokenised a second time, so they cannot drift.

Supervised is the assistant's answer and what ends it:

    plain               answer + "\\n"
    v1, llava_v1        " " + answer + "</s>"   (the space belongs to the answer's first token)
    qwen_1_5, qwen_2    answer + "<|im_end|>\\n"
    llava_llama_3       answer + "<|eot_id|>"

LLaVA-NeXT trains a little more. qwen: also the header "<|im_start|>assistant\\n", and every "\\n",
<|im_start|> and <|im_end|> wherever it stands, in system and user turns too. llama_3: also the
header, and every <|begin_of_text|>, <|start_header_id|>, <|end_header_id|> and <|eot_id|>. These
tokens are fixed or come from the user, so they are not labels here. plain and v1 are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.text.tokenizer import Tokenizer


class Turn(NamedTuple):
    """One turn. `role` is 'human' or 'gpt'; 'system' only as the first turn of a conversation."""

    role: str
    text: str


class Segment(NamedTuple):
    """A stretch of rendered text, supervised as a whole or not at all."""

    text: str
    supervised: bool


@dataclass(frozen=True, kw_only=True)
class Template:
    """The fixed strings of one conversation format.

    Attributes:
        name: what --conversation-template is given.
        add_bos: start with the tokenizer's beginning-of-sequence token, where it has one.
        begin: text before everything else.
        system: default system prompt; an empty one leaves out its prefix and suffix too.
        answer_header: what the model is prompted with; ends the unsupervised part.
        answer_prefix: supervised text between header and answer.
        answer_end: supervised text after the answer.
        strip_text: remove white space around every turn's text.
        images_only: a caption format: of the human turn only the image placeholders are kept.
        stop: the string that ends an answer.
        special_tokens: strings that the tokenizer must know as one token each.
    """

    name: str
    stop: str
    answer_end: str
    add_bos: bool = False
    begin: str = ""
    system: str = ""
    system_prefix: str = ""
    system_suffix: str = ""
    human_prefix: str = ""
    human_suffix: str = ""
    answer_header: str = ""
    answer_prefix: str = ""
    strip_text: bool = False
    images_only: bool = False
    special_tokens: tuple[str, ...] = ()

    def segments(
        self,
        turns: Sequence[Turn],
        system: str | None = None,
        add_generation_prompt: bool = False,
    ) -> list[Segment]:
        """Render human and gpt turns; the texts of all segments joined are the rendered string.

        Args:
            turns: checked turns (see conversation.py), beginning with a human one.
            system: replaces the template's system prompt.
            add_generation_prompt: end with the header of the assistant's next answer.
        """
        system = self._text(self.system if system is None else system)
        pending = self.begin
        if system and not self.images_only:
            pending += self.system_prefix + system + self.system_suffix
        result: list[Segment] = []
        for turn in turns:
            text = self._text(turn.text)
            if turn.role == "human":
                if self.images_only:
                    text = IMAGE_PLACEHOLDER * text.count(IMAGE_PLACEHOLDER)
                pending += self.human_prefix + text + self.human_suffix
            else:
                result.append(Segment(pending + self.answer_header, False))
                result.append(Segment(self.answer_prefix + text + self.answer_end, True))
                pending = ""
        if add_generation_prompt:
            pending += self.answer_header
        if pending:
            result.append(Segment(pending, False))
        return result

    def _text(self, text: str) -> str:
        return text.strip() if self.strip_text else text

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise ValueError naming the special tokens that `tokenizer` does not have."""
        missing = [t for t in self.special_tokens if len(tokenizer.encode(t)) != 1]
        if missing:
            raise ValueError(
                f"--conversation-template {self.name}: the tokenizer has no single token for "
                f"{', '.join(missing)}; use the tokenizer of the matching language model, or "
                "another template"
            )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end a generated answer."""
        return (self.stop,)

    def stop_token_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Token ids that end a generated answer: the stop string's, if it is one, and eos."""
        ids = (tokenizer.token_to_id(self.stop), tokenizer.eos_id)
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def chat_template_jinja(self) -> str:
        """The same format as a Jinja template for Hugging Face's `apply_chat_template`.

        A message's content is a string, or a list of {"type": "text", "text": ...} and
        {"type": "image"}, where an image stands for "<image>\\n". One image moves to the front, as
        in `conversation.place_image`. The rendered string is that of `segments`; token ids are
        then those of the tokenizer for the string as a whole.
        """
        literals = {
            "BEGIN": ("{{ bos_token or '' }}" if self.add_bos else "") + _jinja(self.begin),
            "DEFAULT_SYSTEM": json.dumps(self.system),
            "SYSTEM_PREFIX": _jinja(self.system_prefix),
            "SYSTEM_SUFFIX": _jinja(self.system_suffix),
            "HUMAN_PREFIX": _jinja(self.human_prefix),
            "HUMAN_SUFFIX": _jinja(self.human_suffix),
            "ANSWER_HEADER": _jinja(self.answer_header),
            "ANSWER_PREFIX": _jinja(self.answer_prefix),
            "ANSWER_END": _jinja(self.answer_end),
            "STRIP": " | trim" if self.strip_text else "",
            "KEEP_SYSTEM": "false" if self.images_only else "true",
            "HUMAN": "'<image>' * text.count('<image>')" if self.images_only else "text",
        }
        template = "".join(line.strip() for line in _JINJA.splitlines())
        for name, literal in literals.items():
            template = template.replace(f"@{name}@", literal)
        return template


def _jinja(text: str) -> str:
    return "{{ " + json.dumps(text) + " }}" if text else ""


_JINJA = r"""
{% macro content_text(content) %}
    {% if content is string %}{{ content }}
    {% else %}{% for item in content %}
        {% if item['type'] == 'text' %}{{ item['text'] }}
        {% elif item['type'] == 'image' %}{{ '<image>\n' }}
        {% else %}{{ raise_exception('content type ' + item['type'] + ' is not text or image') }}
        {% endif %}
    {% endfor %}{% endif %}
{% endmacro %}
@BEGIN@
{% set system = @DEFAULT_SYSTEM@ %}
{% set turns = messages %}
{% if messages[0]['role'] == 'system' %}
    {% set system = content_text(messages[0]['content']) @STRIP@ %}
    {% set turns = messages[1:] %}
{% endif %}
{% if system and @KEEP_SYSTEM@ %}@SYSTEM_PREFIX@{{ system }}@SYSTEM_SUFFIX@{% endif %}
{% for message in turns %}
    {% set text = content_text(message['content']) %}
    {% if message['role'] == 'user' %}
        {% if text.count('<image>') == 1 and not text.startswith('<image>') %}
            {% set text = ('<image>\n' + text.replace('<image>', '').strip()).strip() %}
        {% endif %}
        {% set text = text @STRIP@ %}
        @HUMAN_PREFIX@{{ @HUMAN@ }}@HUMAN_SUFFIX@
    {% elif message['role'] == 'assistant' %}
        @ANSWER_HEADER@@ANSWER_PREFIX@{{ text @STRIP@ }}@ANSWER_END@
    {% else %}{{ raise_exception('role ' + message['role'] + ' is not user or assistant') }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}@ANSWER_HEADER@{% endif %}
"""


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
    )


def _llama_3_header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


_LLAVA_LLAMA_3 = Template(
    name="llava_llama_3",
    begin="<|begin_of_text|>",
    system=(
        "You are a helpful language and vision assistant. You are able to understand the visual "
        "content that the user provides, and assist the user with a variety of tasks using "
        "natural language."
    ),
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
)

_PLAIN = Template(name="plain", add_bos=True, images_only=True, answer_end="\n", stop="\n")
_V1 = _vicuna("v1", "user")

TEMPLATES: dict[str, Template] = {
    "plain": _PLAIN,
    "v1": _V1,
    "vicuna_v1": _V1,
    "llava_v1": _vicuna("llava_v1", "human"),
    "qwen_1_5": _qwen("qwen_1_5"),
    "qwen_2": _qwen("qwen_2"),
    "llava_llama_3": _LLAVA_LLAMA_3,
}


def get_template(name: str) -> Template:
    """The template called `name`; ValueError with the known names otherwise."""
    if name not in TEMPLATES:
        raise ValueError(
            f"--conversation-template {name}: unknown; use one of {', '.join(TEMPLATES)}"
        )
    return TEMPLATES[name]
