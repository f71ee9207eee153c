"""Questions asked of a Hugging Face folder: same ids, same logits, same answers."""

from dataclasses import replace

import pytest
import torch

from megatron_llava.text.known_templates import get_template

NEW_TOKENS = 6


def compare(pair, question):
    from megatron_llava.inference.hf_compare import compare_question

    return compare_question(
        question, pair.model, pair.settings, pair.hf, pair.tokenizer, NEW_TOKENS
    )


def error_of(pair, question):
    with pytest.raises(ValueError) as caught:
        compare(pair, question)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_equal_folder_agrees(pair, questions):
    from megatron_llava.inference.generate import generate

    prompts = [question.prompt for question in questions]
    stops = pair.template.stop_token_ids(pair.tokenizer)
    answers = generate(
        pair.model,
        prompts,
        pair.settings,
        max_new_tokens=NEW_TOKENS,
        stop_token_ids=stops,
        rows_per_pack=1024,
    )
    for question, answer in zip(questions, answers, strict=True):
        result = compare(pair, question)
        assert result.answer == pair.tokenizer.decode(answer.token_ids).strip()
        assert result.max_difference < 1e-4


def test_other_weights_are_a_difference(pair, questions, monkeypatch):
    newline = pair.model.image_newline
    monkeypatch.setattr(newline, "data", newline.data + 0.5)
    assert compare(pair, questions[0]).max_difference > 1e-2
    # A text has no newline row.
    assert compare(pair, questions[2]).max_difference < 1e-4


def test_another_chat_template_is_an_error(pair, questions, monkeypatch):
    other = get_template("llava_v1").chat_template_jinja()
    monkeypatch.setattr(pair.hf.processor, "chat_template", other)
    message = error_of(pair, questions[1])
    assert message.startswith(questions[1].prompt.source)
    assert "chat template" in message


def test_several_images(pair, make_questions):
    question = make_questions([[(90, 60), (56, 56)]])[0]
    assert 0 < compare(pair, question).max_difference < 1e-4
    pair = replace(pair, settings=replace(pair.settings, multi_image_views="one_padded"))
    message = error_of(pair, question)
    assert "record 0 (id=q0): has 2 images; training gave each of them the views of" in message


def test_a_folder_that_is_none_is_named(pair, tmp_path):
    from megatron_llava.inference.hf_compare import HFFolder

    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError) as caught:
            HFFolder(str(folder), torch.device("cpu"))
        assert str(caught.value).startswith(f"{folder}: ") and "\n" not in str(caught.value)
