"""Conversation templates: the text around each turn and which of it is trained on.

A template renders turns to segments, each wholly supervised or wholly not. Labels follow from the
segments, never from the length of text tokenised a second time, so they cannot drift.

Supervised is the assistant's answer and what ends it:

    plain               answer + "\\n"
    v1, llava_v1        " " + answer + "</s>"   (the space belongs to the answer's first token)
    llava_llama_2       " " + answer + " </s>"
    chatml_direct, mpt  answer + "<|im_end|>"
    qwen_1_5, qwen_2    answer + "<|im_end|>\\n"
    llava_llama_3       answer + "<|eot_id|>"

LLaVA-NeXT trains a little more. qwen: also the header "<|im_start|>assistant\\n", and every "\\n",
<|im_start|> and <|im_end|> wherever it stands, in system and user turns too. llama_3: also the
header, and every <|begin_of_text|>, <|start_header_id|>, <|end_header_id|> and <|eot_id|>. These
tokens are fixed or come from the user, so they are labels only where `llava_labels` are asked for.
The other templates are the same.
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
    """A stretch of rendered text, supervised as a whole or not at all.

    `end` is the fixed text that it ends with, behind which the next one stands.
    """

    text: str
    supervised: bool
    end: str = ""


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
        turn_begin: text before every human turn but the first.
        system_in_turn: the system prompt stands in the first human turn, behind its prefix.
        llava_header: LLaVA-NeXT trains the header of an answer as well.
        llava_tokens: tokens that LLaVA-NeXT trains wherever they stand.
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
    turn_begin: str = ""
    system_in_turn: bool = False
    llava_header: bool = False
    llava_tokens: tuple[str, ...] = ()
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
        llava_labels: bool = False,
    ) -> list[Segment]:
        """Render human and gpt turns; the texts of all segments joined are the rendered string.

        Args:
            turns: checked turns (see conversation.py), beginning with a human one.
            system: replaces the template's system prompt.
            add_generation_prompt: end with the header of the assistant's next answer.
            llava_labels: supervise the headers that LLaVA-NeXT supervises.
        """
        system = self._text(self.system if system is None else system)
        if system and not self.images_only:
            system = self.system_prefix + system + self.system_suffix
        else:
            system = ""
        pending = self.begin + ("" if self.system_in_turn else system)
        result: list[Segment] = []
        for number, turn in enumerate(turns):
            text = self._text(turn.text)
            if turn.role == "human":
                if self.images_only:
                    text = IMAGE_PLACEHOLDER * text.count(IMAGE_PLACEHOLDER)
                begin = self.turn_begin if number else system if self.system_in_turn else ""
                prefix = begin + self.human_prefix if number else self.human_prefix + begin
                pending += prefix + text + self.human_suffix
            else:
                if llava_labels and self.llava_header:
                    result.append(Segment(pending, False, self.human_suffix))
                    result.append(Segment(self.answer_header, True, self.answer_header))
                else:
                    result.append(Segment(pending + self.answer_header, False, self.answer_header))
                answer = self.answer_prefix + text + self.answer_end
                result.append(Segment(answer, True, self.answer_end))
                pending = ""
        if add_generation_prompt:
            pending += self.answer_header
        if pending:
            result.append(Segment(pending, False, self.answer_header))
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
            "KEEP_SYSTEM": "false" if self.images_only or self.system_in_turn else "true",
            "TURN_BEGIN": _jinja(self.turn_begin),
            "TURN_SYSTEM": _TURN_SYSTEM if self.system_in_turn else "",
            "HUMAN": "'<image>' * text.count('<image>')" if self.images_only else "text",
        }
        template = "".join(line.strip() for line in _JINJA.splitlines())
        template = template.replace("@TURN_SYSTEM@", literals.pop("TURN_SYSTEM"))
        for name, literal in literals.items():
            template = template.replace(f"@{name}@", literal)
        return template


def _jinja(text: str) -> str:
    return "{{ " + json.dumps(text) + " }}" if text else ""


_TURN_SYSTEM = "{% if loop.first and system %}@SYSTEM_PREFIX@{{ system }}@SYSTEM_SUFFIX@{% endif %}"

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
        {% if not loop.first %}@TURN_BEGIN@{% endif %}
        @HUMAN_PREFIX@@TURN_SYSTEM@{{ @HUMAN@ }}@HUMAN_SUFFIX@
    {% elif message['role'] == 'assistant' %}
        @ANSWER_HEADER@@ANSWER_PREFIX@{{ text @STRIP@ }}@ANSWER_END@
    {% else %}{{ raise_exception('role ' + message['role'] + ' is not user or assistant') }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}@ANSWER_HEADER@{% endif %}
"""
