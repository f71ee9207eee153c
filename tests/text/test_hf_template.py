"""The tokenizer's own chat template, against LLaVA's templates written as chat templates."""

import numpy as np
import pytest

from megatron_llava.text.conversation import encode_conversation, encode_prompt
from megatron_llava.text.known_templates import TEMPLATES, get_template
from megatron_llava.text.templates import Turn

TURNS = [
    Turn("human", "<image>\nWhat is it?"),
    Turn("gpt", "a cat"),
    Turn("human", "user\n\nno"),
    Turn("gpt", "yes\non a mat."),
]
# As LLaVA's processors have them: contents are lists, images come first.
PARTS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n"
    "{% endfor %}{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tokenizers):
    found = tokenizers["bpe_bos"]
    before = found.hf.chat_template
    yield found
    found.hf.chat_template = before


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"plain"}))
def test_it_is_the_template_that_it_was_written_from(tokenizer, name):
    ours = get_template(name)
    tokenizer.hf.chat_template = ours.chat_template_jinja()
    theirs = get_template("hf", tokenizer)
    for turns in (TURNS[:2], TURNS):
        expected = encode_conversation(turns, 1, tokenizer, ours, "r")
        found = encode_conversation(turns, 1, tokenizer, theirs, "r")
        np.testing.assert_array_equal(found.token_ids, expected.token_ids)
        # The header of v1 ends in ":", and the space before an answer belongs to the answer.
        np.testing.assert_array_equal(found.label_mask, expected.label_mask)
    prompt = encode_prompt(TURNS[:3], 1, tokenizer, theirs, "r")
    np.testing.assert_array_equal(prompt, encode_prompt(TURNS[:3], 1, tokenizer, ours, "r"))


def test_contents_in_parts(tokenizer):
    tokenizer.hf.chat_template = PARTS
    template = get_template("hf", tokenizer)
    assert template.takes_parts
    segments = template.segments(TURNS[:2])
    assert [s[:2] for s in segments] == [
        ("<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n", False),
        ("a cat<|im_end|>\n", True),
    ]
    both = encode_conversation(
        [Turn("human", "<image>1 <image>2"), Turn("gpt", "no")], 2, tokenizer, template, "r"
    )
    assert np.count_nonzero(both.token_ids == -200) == 2


@pytest.mark.parametrize(
    ("jinja", "words"),
    [
        (None, "has no chat template"),
        ("nothing", "does not render a message"),
        ("{{ raise_exception('no') }}", "does not render a message"),
    ],
)
def test_templates_that_are_none(tokenizer, jinja, words):
    tokenizer.hf.chat_template = jinja
    with pytest.raises(ValueError, match=words):
        get_template("hf", tokenizer)


def test_templates_that_cannot_be_followed(tokenizer):
    # Reasoning templates drop earlier answers; this one counts the messages at its beginning.
    tokenizer.hf.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="^r: .* rewrites earlier turns at turn 2"):
        encode_conversation(TURNS[:2], 1, tokenizer, get_template("hf", tokenizer), "r")
    tokenizer.hf.chat_template = (
        "{% for m in messages %}{{ m['content'] | replace('<image>', '') }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="writes 0 <image> for 1 images"):
        encode_conversation(TURNS[:2], 1, tokenizer, get_template("hf", tokenizer), "r")


def test_a_tokenizer_without_templates(tokenizers):
    with pytest.raises(ValueError, match="has no chat template; name one of LLaVA's"):
        get_template("hf", tokenizers["sentencepiece"])
    with pytest.raises(ValueError, match="--conversation-template hf: unknown"):
        get_template("hf")
