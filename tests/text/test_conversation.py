import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.text.conversation import (
    encode_conversation,
    encode_prompt,
    place_image,
    turns_from_record,
)
from megatron_llava.text.known_templates import TEMPLATES, get_template
from megatron_llava.text.templates import Turn

KINDS = ["bpe", "bpe_bos", "sentencepiece", "llama_legacy", "llama"]
TURNS = [
    Turn("human", "<image>\nWhat is in the image?"),
    Turn("gpt", "a cat on a mat."),
    Turn("human", "It's helpful?"),
    Turn("gpt", "You are."),
]


def fitting(template):
    return TURNS[:2] if template.images_only else TURNS


def one_go(tokenizer, template, turns):
    """Reference: the rendered string tokenised at once, with <image> as one token, then BOS."""
    text = "".join(s.text for s in template.segments(turns))
    image = tokenizer.token_to_id("<image>")
    ids = [IMAGE_TOKEN_INDEX if i == image else i for i in tokenizer.encode(text)]
    has_bos = template.add_bos and tokenizer.bos_id is not None
    return [tokenizer.bos_id, *ids] if has_bos else ids


CASES = [(kind, name) for kind in ("bpe", "bpe_bos") for name in sorted(TEMPLATES)]
CASES += [
    (kind, name) for kind in ("llama_image", "llama_legacy_image") for name in ("plain", "v1")
]


@pytest.mark.proves("C1")
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_ids_are_those_of_the_whole_string(tokenizers, kind, name):
    """For tokenizers that know <image>, as those of HF processors do."""
    tokenizer, template = tokenizers[kind], get_template(name)
    encoded = encode_conversation(fitting(template), 1, tokenizer, template, "test")
    assert encoded.token_ids.dtype == np.int32 and encoded.label_mask.dtype == np.uint8
    assert encoded.token_ids.tolist() == one_go(tokenizer, template, fitting(template))


@pytest.mark.parametrize("kind", KINDS)
def test_v1_ids_are_those_of_the_whole_string_without_doubled_spaces(tokenizers, kind):
    """Text only, so that the reference needs no <image> token, which Llama tokenizers lack."""
    tokenizer, template = tokenizers[kind], get_template("v1")
    turns = [Turn("human", "What is it?"), *TURNS[1:]]
    encoded = encode_conversation(turns, 0, tokenizer, template, "test")
    assert encoded.token_ids.tolist() == one_go(tokenizer, template, turns)
    trained = encoded.token_ids[encoded.label_mask == 1]
    ends = (trained == tokenizer.token_to_id("</s>")).nonzero()[0]
    first, second = trained[: ends[0]].tolist(), trained[ends[0] + 1 : ends[1]].tolist()
    lead = " " if kind.startswith("bpe") else ""  # elsewhere the tokenizer puts the space itself
    assert first == tokenizer.encode(lead + "a cat on a mat.")
    assert second == tokenizer.encode(lead + "You are.")
    assert ends[1] == len(trained) - 1


def test_text_after_an_image_is_a_text_of_its_own_for_llama(tokenizers):
    """Tokenizers that do not know <image> see each side by itself, as LLaVA's do."""
    tokenizer = tokenizers["sentencepiece"]
    encoded = encode_conversation(TURNS[:2], 1, tokenizer, get_template("plain"), "test")
    caption = tokenizer.encode("a cat on a mat.\n")
    assert encoded.token_ids.tolist() == [1, IMAGE_TOKEN_INDEX, *caption]
    assert encoded.label_mask.tolist() == [0, 0] + [1] * len(caption)
    v1 = get_template("v1")
    before, after = v1.segments([Turn("human", "<image>\nq")])[0].text.split("<image>")
    ids = encode_prompt([Turn("human", "<image>\nq")], 1, tokenizer, v1, "test")
    after_ids = tokenizer.encode(after + "ASSISTANT:")
    assert ids.tolist() == [1, *tokenizer.encode(before), IMAGE_TOKEN_INDEX, *after_ids]


@pytest.mark.proves("A22")
@pytest.mark.parametrize("kind", KINDS)
def test_prefix_is_bos_image_caption_and_eos(tokenizers, kind):
    tokenizer = tokenizers[kind]
    template = get_template("prefix", tokenizer)
    template.check_tokenizer(tokenizer)
    encoded = encode_conversation(TURNS[:2], 1, tokenizer, template, "test")
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    caption = [*tokenizer.encode("a cat on a mat."), tokenizer.eos_id]
    assert tokenizer.token_to_id(template.stop) == tokenizer.eos_id is not None
    assert encoded.token_ids.tolist() == [*begin, IMAGE_TOKEN_INDEX, *caption]
    assert encoded.label_mask.tolist() == [0] * (len(begin) + 1) + [1] * len(caption)
    prompt = encode_prompt(TURNS[:1], 1, tokenizer, template, "test")
    assert prompt.tolist() == [*begin, IMAGE_TOKEN_INDEX]


def test_prefix_needs_an_end_of_sequence(tokenizers, monkeypatch):
    monkeypatch.setattr(tokenizers["bpe"], "eos_token", None)
    with pytest.raises(ValueError, match="--conversation-template prefix .* lacks: use plain"):
        get_template("prefix", tokenizers["bpe"])
    with pytest.raises(ValueError, match="--conversation-template prefix: unknown"):
        get_template("prefix")


def test_a_token_across_the_start_of_an_answer_is_not_used(tokenizers):
    """Generation starts after the header's newline, so training must not merge it with another."""
    tokenizer, template = tokenizers["bpe"], get_template("qwen_2")
    turns = [Turn("human", "q"), Turn("gpt", "\nyes")]
    encoded = encode_conversation(turns, 0, tokenizer, template, "test")
    assert len(tokenizer.encode("\n\n")) == 1
    assert encoded.token_ids.tolist() != one_go(tokenizer, template, turns)
    trained = encoded.token_ids[encoded.label_mask == 1].tolist()
    assert trained == tokenizer.encode("\nyes<|im_end|>\n")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_supervised_tokens_are_the_answers_and_their_ends(tokenizers, name):
    tokenizer, template = tokenizers["bpe"], get_template(name)
    turns = fitting(template)
    encoded = encode_conversation(turns, 1, tokenizer, template, "test")
    trained = tokenizer.hf.decode(encoded.token_ids[encoded.label_mask == 1])
    answers = [turn.text for turn in turns if turn.role == "gpt"]
    assert trained == "".join(template.answer_prefix + a + template.answer_end for a in answers)


@pytest.mark.parametrize("name", ["v1", "qwen_2", "llava_llama_3", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_prompt_is_the_prefix_of_training(tokenizers, kind, name):
    tokenizer, template = tokenizers[kind], get_template(name)
    alphabet = st.sampled_from(
        ["a cat", " ", "\n", "'s", ":", "assistant", "1", "\u00e9", "\u732b"]
    )
    texts = st.lists(alphabet, min_size=1, max_size=6).map("".join)

    @given(question=texts, answer=texts.filter(str.strip), history=st.booleans())
    def check(question, answer, history):
        turns = [Turn("human", f"<image>\n{question}")]
        if history and not template.images_only:
            turns = [*TURNS[:2], Turn("human", question)]
        prompt = encode_prompt(turns, 1, tokenizer, template, "test")
        encoded = encode_conversation([*turns, Turn("gpt", answer)], 1, tokenizer, template, "test")
        assert prompt.dtype == np.int32
        assert encoded.token_ids[: len(prompt)].tolist() == prompt.tolist()
        assert encoded.label_mask[len(prompt) :].all()
        if not history:
            assert not encoded.label_mask[: len(prompt)].any()
        assert (encoded.token_ids == IMAGE_TOKEN_INDEX).sum() == 1

    check()


@pytest.mark.parametrize(
    ("text", "placed"),
    [
        ("What? <image>", "<image>\nWhat?"),
        ("What is\n<image>\nthis?", "<image>\nWhat is\n\nthis?"),
        (" <image>", "<image>"),
        ("<image>What?", "<image>What?"),
        ("<image>\nWhat? ", "<image>\nWhat? "),
        ("no image ", "no image "),
        ("a <image> b <image>", "a <image> b <image>"),
    ],
)
def test_image_placement(tokenizers, text, placed):
    assert place_image(text) == placed
    tokenizer, template = tokenizers["bpe"], get_template("qwen_2")
    num_images = text.count("<image>")
    ids = encode_prompt([Turn("human", text)], num_images, tokenizer, template, "test")
    assert ids.tolist() == one_go(tokenizer, template, [Turn("human", placed)]) + (
        tokenizer.encode("<|im_start|>assistant\n")
    )


def test_an_image_in_an_answer_stays_there_and_is_no_label(tokenizers):
    tokenizer, template = tokenizers["bpe"], get_template("qwen_2")
    turns = [Turn("human", "q"), Turn("gpt", "here <image> it is")]
    encoded = encode_conversation(turns, 1, tokenizer, template, "test")
    at = encoded.token_ids.tolist().index(IMAGE_TOKEN_INDEX)
    assert encoded.label_mask[at - 1 : at + 2].tolist() == [1, 0, 1]
    assert encoded.token_ids.tolist() == one_go(tokenizer, template, turns)


def test_leading_answer_is_dropped_and_system_turn_is_used(tokenizers):
    tokenizer, template = tokenizers["bpe"], get_template("qwen_2")
    turns = [Turn("system", "Be brief."), Turn("gpt", "hello"), *TURNS]
    encoded = encode_conversation(turns, 1, tokenizer, template, "test")
    text = "".join(s.text for s in template.segments(TURNS, "Be brief.")).replace("<image>", "")
    assert tokenizer.hf.decode([i for i in encoded.token_ids if i >= 0]) == text


@pytest.mark.parametrize(
    ("turns", "num_images", "message"),
    [
        (TURNS, 0, "f.json:3: 1 <image> placeholders in the conversation, but 0 images"),
        (TURNS, 2, "f.json:3: 1 <image> placeholders in the conversation, but 2 images"),
        (TURNS[2:], 1, "f.json:3: 0 <image> placeholders in the conversation, but 1 images"),
        ([], 0, "f.json:3: the conversation has no human turn"),
        ([Turn("gpt", "a")], 0, "f.json:3: the conversation has no human turn"),
        ([Turn("human", "q")], 0, "f.json:3: the conversation has no answer"),
        ([*TURNS[2:], Turn("gpt", "a")], 0, "f.json:3: turn 3 is gpt where human was expected"),
        ([Turn("human", "q"), Turn("system", "s")], 0, "f.json:3: turn 2 is system where gpt"),
        ([Turn("human", "q"), Turn("gpt", " ")], 0, "f.json:3: turn 2 is an empty answer"),
        ([Turn("bot", "q")], 0, "f.json:3: turn 1 is from 'bot', not one of"),
    ],
)
def test_broken_conversations_are_refused(tokenizers, turns, num_images, message):
    with pytest.raises(ValueError) as caught:
        encode_conversation(turns, num_images, tokenizers["bpe"], get_template("v1"), "f.json:3")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_prompt_must_end_with_a_question_and_plain_takes_one(tokenizers):
    with pytest.raises(ValueError, match="f: the last turn of a prompt must be human, it is gpt"):
        encode_prompt(TURNS, 1, tokenizers["bpe"], get_template("v1"), "f")
    with pytest.raises(ValueError, match="f: 4 turns, but --conversation-template plain takes one"):
        encode_conversation(TURNS, 1, tokenizers["bpe"], get_template("plain"), "f")


def test_turns_from_record():
    llava = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    expected = [Turn("human", "q"), Turn("gpt", "a")]
    assert turns_from_record(llava, "f") == turns_from_record(chat, "f") == expected
    for record, message in (
        (None, "f: conversations is NoneType, not a list"),
        (["q"], "f: turn 1 is str, not an object"),
        ([{"from": "human"}], r"f: turn 1 needs strings .* it has the keys \['from'\]"),
        ([{"from": "human", "value": None}], "f: turn 1 needs strings"),
        ([{"from": "bot", "value": "q"}], "f: turn 1 is from 'bot', not one of"),
    ):
        with pytest.raises(ValueError, match=message):
            turns_from_record(record, "f")
