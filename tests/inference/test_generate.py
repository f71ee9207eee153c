"""Greedy answers are those of transformers, however the prompts share packs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_llava.inference.sampling import Sampling

NEW_TOKENS = 8


def generate(
    pair, questions, stops=(), max_new_tokens=NEW_TOKENS, rows_per_pack=1024, sampling=None
):
    from megatron_llava.inference.generate import generate

    prompts = [question.prompt for question in questions]
    return list(
        generate(
            pair.model,
            prompts,
            pair.settings,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stops,
            rows_per_pack=rows_per_pack,
            sampling=sampling,
        )
    )


@pytest.fixture(scope="module")
def hf_answers(pair, questions):
    """What transformers generates for each question, as ids."""
    answers = []
    for question in questions:
        inputs = pair.hf.inputs(question)
        output = pair.hf.model.generate(
            **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=-1, pad_token_id=0
        )
        answers.append(tuple(output[0, inputs["input_ids"].shape[1] :].tolist()))
    assert all(len(answer) == NEW_TOKENS for answer in answers)
    # Answers that do not depend on the question would prove nothing.
    assert len(set(answers)) == len(questions)
    assert all(len(set(answer)) > 1 for answer in answers)
    return answers


@pytest.fixture(scope="module")
def answers(pair, questions):
    return generate(pair, questions)


def test_answers_equal_those_of_transformers_token_by_token(answers, hf_answers):
    assert [answer.token_ids for answer in answers] == hf_answers


def test_prompt_logits_equal_those_of_transformers(pair, questions, answers):
    for question, answer in zip(questions, answers, strict=True):
        with torch.no_grad():
            expected = pair.hf.model(**pair.hf.inputs(question)).logits[0, -1]
        assert answer.prompt_logits.shape == expected.shape == (300,)
        assert float((answer.prompt_logits - expected).abs().max()) < 1e-4


@pytest.mark.proves("E3")
@pytest.mark.parametrize("rows_per_pack", [1, 250, 10**6])
def test_answers_do_not_depend_on_what_shares_a_pack(pair, questions, answers, rows_per_pack):
    found = generate(pair, questions, rows_per_pack=rows_per_pack)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in answers]
    for one, other in zip(found, answers, strict=True):
        assert torch.allclose(one.prompt_logits, other.prompt_logits, atol=1e-4)


@pytest.mark.parametrize(("rows_per_pack", "packs"), [(1, 7), (10**6, 1)])
def test_a_pack_encodes_its_images_once(pair, questions, monkeypatch, rows_per_pack, packs):
    calls, original = [], pair.model.encode_images
    monkeypatch.setattr(
        pair.model, "encode_images", lambda t, e: calls.append(len(t)) or original(t, e)
    )
    generate(pair, questions, rows_per_pack=rows_per_pack)
    assert len(calls) == packs


def test_packs_hold_no_more_rows_than_allowed(pair, questions, monkeypatch):
    rows, original = [], pair.model.decode

    def decode(batch, features, cache):
        assert batch.tiles is None, "the decoder's device gets features alone"
        rows.append(batch.num_rows)
        return original(batch, features, cache)

    monkeypatch.setattr(pair.model, "decode", decode)
    generate(pair, questions, rows_per_pack=10**6)
    (together,) = rows
    rows.clear()
    generate(pair, questions, rows_per_pack=together // 2 + NEW_TOKENS * len(questions))
    assert max(rows) < together
    assert 1 < len(rows) < len(questions)


@pytest.mark.proves("E2")
def test_kept_keys_and_values_give_what_computing_all_rows_again_gives(pair, questions, answers):
    extended = [question.prompt for question in questions]
    for step in range(NEW_TOKENS):
        asked = [replace(q, prompt=p) for q, p in zip(questions, extended, strict=True)]
        found = generate(pair, asked, max_new_tokens=1)
        tokens = [answer.token_ids[0] for answer in found]
        assert tokens == [answer.token_ids[step] for answer in answers]
        extended = [_with_token(p, t) for p, t in zip(extended, tokens, strict=True)]


def _with_token(prompt, token):
    ids = np.append(prompt.token_ids, prompt.token_ids.dtype.type(token))
    return replace(prompt, token_ids=ids, label_mask=np.zeros(len(ids), np.uint8))


@pytest.mark.proves("E2")
def test_an_image_is_seen_once_however_long_the_answer(pair, questions, monkeypatch):
    seen, original = [], pair.model.vision_model.forward
    monkeypatch.setattr(
        pair.model.vision_model, "forward", lambda x: seen.append(len(x)) or original(x)
    )
    generate(pair, questions[:1], max_new_tokens=5)
    assert len(seen) == 1


@pytest.mark.proves("C14")
def test_repetitions_are_penalised_as_transformers_does(pair, questions, answers):
    sampling = Sampling(repetition_penalty=1.6)
    found = generate(pair, questions, sampling=sampling)
    assert [a.token_ids for a in found] != [a.token_ids for a in answers]
    for question, answer in zip(questions, found, strict=True):
        inputs = pair.hf.inputs(question)
        output = pair.hf.model.generate(
            **inputs,
            do_sample=False,
            repetition_penalty=1.6,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=-1,
            pad_token_id=0,
        )
        assert answer.token_ids == tuple(output[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.mark.proves("C14")
def test_draws_follow_the_seed_and_not_the_packs(pair, questions):
    hot = Sampling(temperature=2.0, top_p=0.95, seed=3)
    found = generate(pair, questions, sampling=hot)
    alone = generate(pair, questions, sampling=hot, rows_per_pack=1)
    assert [a.token_ids for a in found] == [a.token_ids for a in alone]
    other = generate(pair, questions, sampling=replace(hot, seed=4))
    assert [a.token_ids for a in found] != [a.token_ids for a in other]
    twice = generate(pair, [questions[0], questions[0]], sampling=hot)
    assert twice[0].token_ids != twice[1].token_ids


def test_a_stop_token_ends_its_answer_and_no_other(pair, questions, answers):
    chosen = answers[0].token_ids[3]
    found = generate(pair, questions, stops=[chosen])
    for stopped, whole in zip(found, answers, strict=True):
        ids = whole.token_ids
        assert stopped.token_ids == ids[: ids.index(chosen) if chosen in ids else None]
    assert {len(answer.token_ids) for answer in found} >= {
        answers[0].token_ids.index(chosen),
        NEW_TOKENS,
    }


def test_each_of_several_stop_tokens_ends_an_answer(pair, questions, answers):
    stops = {answer.token_ids[0] for answer in answers}
    found = generate(pair, questions, stops=list(stops))
    assert [answer.token_ids for answer in found] == [()] * len(questions)
    # The first token was chosen from these all the same.
    for stopped, whole in zip(found, answers, strict=True):
        assert int(stopped.prompt_logits.argmax()) == whole.token_ids[0]


def test_max_new_tokens_cuts_answers(pair, questions, answers):
    found = generate(pair, questions, max_new_tokens=3)
    assert [a.token_ids for a in found] == [a.token_ids[:3] for a in answers]


def test_several_images_share_a_prompt(pair, make_questions, questions, answers):
    several = make_questions([[(90, 60), (56, 56)], [(30, 99), (20, 20), (70, 10)]])
    alone = generate(pair, several, rows_per_pack=1)
    mixed = generate(pair, [questions[0], several[0], questions[2], several[1]])
    assert [a.token_ids for a in mixed] == [
        answers[0].token_ids,
        alone[0].token_ids,
        answers[2].token_ids,
        alone[1].token_ids,
    ]
    swapped = replace(
        several[0],
        prompt=replace(
            several[0].prompt,
            images=several[0].prompt.images[::-1],
            image_sizes=several[0].prompt.image_sizes[::-1],
        ),
    )
    other = generate(pair, [swapped])[0]
    assert not torch.allclose(other.prompt_logits, alone[0].prompt_logits, atol=1e-2)


def test_an_image_that_leaves_no_patch_is_one_line_that_names_the_record(pair, make_questions):
    settings = replace(pair.settings, mm_patch_merge_type="spatial_unpad_nobase")
    with pytest.raises(ValueError) as caught:
        generate(replace(pair, settings=settings), make_questions([(56, 56), (9000, 2)]))
    assert "record 1 (id=q1): image of 9000x2 pixels is too thin" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_that_the_model_lacks_is_one_line_that_names_the_record(pair, questions):
    prompt = questions[1].prompt
    ids = prompt.token_ids.copy()
    ids[-1] = 300
    question = replace(questions[1], prompt=replace(prompt, token_ids=ids))
    with pytest.raises(ValueError) as caught:
        generate(pair, [questions[0], question])
    message = str(caught.value)
    assert "record 1 (id=q1): token 300" in message and "vocabulary of 300" in message
    assert "\n" not in message


def test_the_model_is_left_as_it_was(pair, questions):
    before = {name: p.detach().clone() for name, p in pair.model.named_parameters()}
    generate(pair, questions[:2])
    assert all(torch.equal(before[name], p) for name, p in pair.model.named_parameters())
    assert all(p.grad is None for p in pair.model.parameters())
