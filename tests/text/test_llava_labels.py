"""Labels as LLaVA-NeXT sets them, against a transcription of its rules message by message."""

import numpy as np
import pytest

from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.text.conversation import encode_conversation
from megatron_llava.text.known_templates import TEMPLATES, get_template
from megatron_llava.text.templates import Turn

CONVERSATIONS = {
    "one answer": [Turn("human", "<image>\nWhat is it?"), Turn("gpt", "a cat")],
    "newlines": [
        Turn("human", "user\nWhat is it?\n\nno\n"),
        Turn("gpt", "a cat\non a mat."),
        Turn("human", "yes\n<image>"),
        Turn("gpt", "no\n\nyes"),
    ],
}
SYSTEMS = {
    "qwen_1_5": "You are a helpful assistant.",
    "llava_llama_3": (
        "You are a helpful language and vision assistant. You are able to understand the visual "
        "content that the user provides, and assist the user with a variety of tasks using "
        "natural language."
    ),
}


def encode_with_images(tokenizer, text):
    ids = []
    for number, piece in enumerate(text.split("<image>")):
        ids += [IMAGE_TOKEN_INDEX] * bool(number) + tokenizer.encode(piece)
    return ids


def qwen_rule(tokenizer, turns):
    """Each message by its template; system and user masked; then three tokens anywhere."""
    ids, labels = [], []
    messages = [("system", SYSTEMS["qwen_1_5"])]
    messages += [({"human": "user", "gpt": "assistant"}[t.role], t.text) for t in turns]
    for role, text in messages:
        piece = encode_with_images(tokenizer, f"<|im_start|>{role}\n{text}<|im_end|>\n")
        ids += piece
        labels += [int(role == "assistant")] * len(piece)
    (newline,) = tokenizer.encode("\n")
    trained = {newline, tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")}
    return ids, [int(label or token in trained) for token, label in zip(ids, labels, strict=True)]


def llama_3_rule(tokenizer, turns):
    """The same with Llama-3's headers, the first token once, and contents trimmed."""
    ids, labels = [tokenizer.token_to_id("<|begin_of_text|>")], [1]
    messages = [("system", SYSTEMS["llava_llama_3"])]
    messages += [({"human": "user", "gpt": "assistant"}[t.role], t.text) for t in turns]
    for role, text in messages:
        header = f"<|start_header_id|>{role}<|end_header_id|>\n\n"
        piece = encode_with_images(tokenizer, header + text.strip() + "<|eot_id|>")
        ids += piece
        labels += [int(role == "assistant")] * len(piece)
    names = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    trained = {tokenizer.token_to_id(name) for name in names}
    return ids, [int(label or token in trained) for token, label in zip(ids, labels, strict=True)]


RULES = {"qwen_1_5": qwen_rule, "qwen_2": qwen_rule, "llava_llama_3": llama_3_rule}


@pytest.mark.proves("C1")
@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", RULES)
def test_headers_and_special_tokens(tokenizers, name, turns):
    tokenizer, template = tokenizers["bpe"], get_template(name)
    # LLaVA moves a single placeholder to the front before it renders.
    moved = [Turn(t.role, "<image>\nyes" if t.text == "yes\n<image>" else t.text) for t in turns]
    ids, labels = RULES[name](tokenizer, moved)
    encoded = encode_conversation(turns, 1, tokenizer, template, "r", llava_labels=True)
    assert encoded.token_ids.tolist() == ids
    assert encoded.label_mask.tolist() == labels


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - set(RULES)))
@pytest.mark.parametrize("kind", ["bpe_bos", "llama_legacy_image"])
def test_other_templates_have_the_same_labels(tokenizers, kind, name):
    tokenizer, template = tokenizers[kind], get_template(name)
    if any(len(tokenizer.encode(token)) != 1 for token in template.special_tokens):
        pytest.skip("another kind of tokenizer")
    turns = CONVERSATIONS["one answer"]
    plain = encode_conversation(turns, 1, tokenizer, template, "r")
    compat = encode_conversation(turns, 1, tokenizer, template, "r", llava_labels=True)
    np.testing.assert_array_equal(plain.token_ids, compat.token_ids)
    np.testing.assert_array_equal(plain.label_mask, compat.label_mask)


@pytest.mark.parametrize("name", TEMPLATES)
def test_labels_never_change_the_tokens(tokenizers, name):
    turns = CONVERSATIONS["newlines"][:2] if name == "plain" else CONVERSATIONS["newlines"]
    images = sum(turn.text.count("<image>") for turn in turns)
    tokenizer, template = tokenizers["bpe_bos"], get_template(name)
    plain = encode_conversation(turns, images, tokenizer, template, "r")
    compat = encode_conversation(turns, images, tokenizer, template, "r", llava_labels=True)
    np.testing.assert_array_equal(plain.token_ids, compat.token_ids)
    assert (compat.label_mask >= plain.label_mask).all()


@pytest.mark.parametrize("name", ["llava_llama_2", "mistral_instruct"])
def test_the_instruct_format_with_sentencepiece(tokenizers, name):
    """The answer, the space behind it and the end are trained, nothing else."""
    tokenizer = tokenizers["sentencepiece"]
    turns = [Turn("human", "What is it?"), Turn("gpt", "a cat")] * 2
    encoded = encode_conversation(turns, 0, tokenizer, get_template(name), "r")
    trained = encoded.token_ids[encoded.label_mask == 1].tolist()
    assert trained == (tokenizer.encode("a cat ") + [tokenizer.eos_id]) * 2
    assert encoded.token_ids[0] == tokenizer.bos_id
    between = encoded.token_ids.tolist().count(tokenizer.bos_id)
    assert between == (2 if name == "llava_llama_2" else 1)
