"""`--conversation-template hf`: the chat template that a Hugging Face tokenizer brings.

Answers are found by rendering a conversation turn by turn: what a message of the assistant adds
behind the prompt for it is supervised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.text.templates import Segment, Template, Turn
from megatron_llava.text.tokenizer import HFTokenizer, Tokenizer

_ROLES = {"human": "user", "gpt": "assistant"}
_PROBE = "a probe of the template"


@dataclass(frozen=True, kw_only=True)
class HFTemplate(Template):
    """A tokenizer's own template as a Template.

    Attributes:
        hf: the tokenizer of transformers.
        takes_parts: contents are lists of parts, as in LLaVA's processors, not strings.
    """

    hf: Any
    takes_parts: bool

    def segments(
        self,
        turns: Sequence[Turn],
        system: str | None = None,
        add_generation_prompt: bool = False,
        llava_labels: bool = False,
    ) -> list[Segment]:
        """See Template; ValueError where the template cannot render the turns one after another."""
        messages = [] if system is None else [self._message("system", system)]
        result: list[Segment] = []
        done = ""
        for number, turn in enumerate(turns, start=1):
            if turn.role == "gpt":
                prompt = self._render(messages, True)
                messages.append(self._message("assistant", turn.text))
                whole = self._render(messages, False)
                header = self._added(self._render(messages[:-1], False), prompt, number)
                answer = self._added(prompt, whole, number)
                result.append(Segment(self._added(done, prompt, number), False, header))
                end = answer[answer.rfind(turn.text.strip()) + len(turn.text.strip()) :]
                result.append(Segment(answer, True, end))
                done = whole
            else:
                messages.append(self._message("user", turn.text))
        rest = self._added(done, self._render(messages, add_generation_prompt), len(turns))
        if rest:
            result.append(Segment(rest, False, rest))
        expected = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
        found = sum(segment.text.count(IMAGE_PLACEHOLDER) for segment in result)
        if found != expected:
            raise ValueError(
                f"the tokenizer's chat template writes {found} {IMAGE_PLACEHOLDER} for {expected} "
                "images: use another --conversation-template"
            )
        return result

    def chat_template_jinja(self) -> str:
        return str(self.hf.chat_template)

    def _message(self, role: str, text: str) -> dict[str, Any]:
        if not self.takes_parts:
            return {"role": role, "content": text}
        parts: list[dict[str, str]] = []
        for index, piece in enumerate(re.split(re.escape(IMAGE_PLACEHOLDER) + r"\n?", text)):
            parts += [{"type": "image"}] * bool(index)
            parts += [{"type": "text", "text": piece}] * bool(piece)
        return {"role": role, "content": parts}

    def _render(self, messages: list[dict[str, Any]], prompt: bool) -> str:
        if not messages:
            return ""
        try:
            return str(
                self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            )
        except Exception as error:  # templates raise what they like
            first_line = str(error).strip().split("\n")[0]
            raise ValueError(f"the tokenizer's chat template: {first_line}") from error

    def _added(self, before: str, after: str, number: int) -> str:
        if not after.startswith(before):
            raise ValueError(
                f"the tokenizer's chat template rewrites earlier turns at turn {number}, so that "
                "answers cannot be told from prompts: use another --conversation-template"
            )
        return after[len(before) :]


def hf_template(tokenizer: Tokenizer) -> HFTemplate:
    """The template of a tokenizer's files.

    Raises:
        ValueError: it has none, or renders nothing of a message.
    """
    hf = tokenizer.hf if isinstance(tokenizer, HFTokenizer) else None
    if hf is None or not hf.chat_template:
        raise ValueError(
            "--conversation-template hf: the tokenizer has no chat template; name one of LLaVA's"
        )
    common: dict[str, Any] = {
        "name": "hf",
        "stop": hf.eos_token or "",
        "answer_end": hf.eos_token or "",
        "hf": hf,
    }
    for takes_parts in (False, True):
        template = HFTemplate(takes_parts=takes_parts, **common)
        try:
            text = template.segments([Turn("human", _PROBE)])[0].text
        except (ValueError, IndexError):
            continue
        if _PROBE in text and "'type'" not in text:
            return template
    raise ValueError(
        "--conversation-template hf: the tokenizer's chat template does not render a message of "
        "text; name one of LLaVA's"
    )
