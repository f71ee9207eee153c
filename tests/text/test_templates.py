import pytest

from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.text.conversation import encode_prompt
from megatron_llava.text.known_templates import TEMPLATES, get_template
from megatron_llava.text.templates import Turn

TURNS = [Turn("human", "<image>\nq1"), Turn("gpt", "a1"), Turn("human", "q2"), Turn("gpt", "a2")]
V1 = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
LLAMA_3 = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
# The written-out text of TURNS; [..] marks what is supervised.
RENDERED = {
    "v1": f"{V1} USER: <image>\nq1 ASSISTANT:[ a1</s>]USER: q2 ASSISTANT:[ a2</s>]",
    "llava_v1": (
        f"{V1.replace('user', 'human')} "
        "USER: <image>\nq1 ASSISTANT:[ a1</s>]USER: q2 ASSISTANT:[ a2</s>]"
    ),
    "qwen_1_5": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nq1<|im_end|>\n<|im_start|>assistant\n[a1<|im_end|>\n]"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[a2<|im_end|>\n]"
    ),
    "llava_llama_3": (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{LLAMA_3}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nq1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[a1<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\nq2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[a2<|eot_id|>]"
    ),
}
RENDERED["llava_llama_2"] = (
    f"[INST] <<SYS>>\n{LLAMA_3}\n<</SYS>>\n\n<image>\nq1 [/INST][ a1 </s>]"
    "<s>[INST] q2 [/INST][ a2 </s>]"
)
RENDERED["mistral_instruct"] = "[INST] <image>\nq1 [/INST][ a1 </s>][INST] q2 [/INST][ a2 </s>]"
_CHATML = (
    "<|im_start|>system\n{}<|im_end|><|im_start|>user\n<image>\nq1<|im_end|>"
    "<|im_start|>assistant\n[a1<|im_end|>]<|im_start|>user\nq2<|im_end|>"
    "<|im_start|>assistant\n[a2<|im_end|>]"
)
RENDERED["chatml_direct"] = _CHATML.format("Answer the questions.")
RENDERED["mpt"] = _CHATML.format(
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
    "honest answers."
)
RENDERED["vicuna_v1"] = RENDERED["v1"]
RENDERED["qwen_2"] = RENDERED["qwen_1_5"]


@pytest.mark.parametrize("name", sorted(RENDERED))
def test_rendered_text_and_supervision(name):
    segments = get_template(name).segments(TURNS)
    marked = "".join(f"[{s.text}]" if s.supervised else s.text for s in segments)
    assert marked == RENDERED[name]


def test_plain_keeps_only_the_image_and_the_answer():
    segments = get_template("plain").segments(
        [Turn("human", "Describe it.\n<image>"), Turn("gpt", "a cat")], system="ignored"
    )
    assert [s[:2] for s in segments] == [("<image>", False), ("a cat\n", True)]


def test_system_prompt_is_replaced_or_left_out():
    turns = [Turn("human", "q")]
    qwen = get_template("qwen_2")
    own = "".join(s.text for s in qwen.segments(turns, system="Be brief."))
    assert own == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
    none = "".join(s.text for s in qwen.segments(turns, system=""))
    assert none == "<|im_start|>user\nq<|im_end|>\n"
    llama = "".join(s.text for s in get_template("llava_llama_3").segments(turns, system=""))
    assert llama.startswith("<|begin_of_text|><|start_header_id|>user")


def test_llama_3_strips_texts():
    tidy = get_template("llava_llama_3").segments(TURNS)
    untidy = [Turn(role, f" \n{text} ") for role, text in TURNS]
    assert get_template("llava_llama_3").segments(untidy) == tidy


def test_unknown_template_lists_the_known():
    with pytest.raises(ValueError) as caught:
        get_template("vicuna")
    assert str(caught.value) == (
        "--conversation-template vicuna: unknown; use one of "
        + ", ".join([*TEMPLATES, "prefix", "hf"])
    )


def test_check_tokenizer_names_what_is_missing(tokenizers):
    for template in TEMPLATES.values():
        template.check_tokenizer(tokenizers["bpe"])
    for name in ("plain", "v1"):
        get_template(name).check_tokenizer(tokenizers["sentencepiece"])
    with pytest.raises(ValueError, match=r"qwen_2: .* no single token for <\|im_start\|>, <\|im_e"):
        get_template("qwen_2").check_tokenizer(tokenizers["llama"])
    with pytest.raises(ValueError, match="llava_llama_3: .*<.begin_of_text.>"):
        get_template("llava_llama_3").check_tokenizer(tokenizers["sentencepiece"])


def test_stop_tokens(tokenizers):
    bpe, sp = tokenizers["bpe_bos"], tokenizers["sentencepiece"]
    qwen, v1, plain = get_template("qwen_2"), get_template("v1"), get_template("plain")
    assert qwen.stop_strings == ("<|im_end|>",)
    assert qwen.stop_token_ids(bpe) == (bpe.token_to_id("<|im_end|>"), bpe.token_to_id("</s>"))
    assert v1.stop_token_ids(sp) == (2,)
    assert plain.stop_strings == ("\n",) and plain.stop_token_ids(sp) == (2,)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_jinja_renders_the_same_string(tokenizers, name):
    template, hf = get_template(name), tokenizers["bpe_bos"].hf
    bos = "<s>" if template.add_bos else ""
    for system in (None, 'Say it\'s "so"\nor not {{ x }}.'):
        turns = TURNS[:2] if template.images_only else TURNS
        roles = {"human": "user", "gpt": "assistant"}
        messages = [{"role": roles[role], "content": text} for role, text in turns]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        for cut, prompt in ((len(messages), False), (len(messages) - 1, True)):
            turns = turns[: len(turns) - int(prompt)]
            expected = "".join(s.text for s in template.segments(turns, system, prompt))
            rendered = hf.apply_chat_template(
                messages[:cut],
                chat_template=template.chat_template_jinja(),
                add_generation_prompt=prompt,
                tokenize=False,
            )
            assert rendered == bos + expected


QUESTION = {"type": "text", "text": "What is it?"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<image>\nWhat is it?", "<image>\nWhat is it?"),
        ("<image>What is it?", "<image>What is it?"),
        ("What <image> is it?", "What <image> is it?"),
        ("1 <image> 2 <image>", "1 <image> 2 <image>"),
        ([{"type": "image"}, QUESTION], "<image>\nWhat is it?"),
        ([QUESTION, {"type": "image"}], "What is it?<image>"),
        ([{"type": "image"}, {"type": "image"}, QUESTION], "<image>\n<image>\nWhat is it?"),
    ],
)
@pytest.mark.parametrize("name", ["qwen_1_5", "v1"])
@pytest.mark.parametrize("kind", ["bpe", "bpe_bos"])
def test_apply_chat_template_gives_the_ids_of_encode_prompt(tokenizers, kind, name, content, text):
    tokenizer, template = tokenizers[kind], get_template(name)
    ids = tokenizer.hf.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=template.chat_template_jinja(),
        add_generation_prompt=True,
    )["input_ids"]
    image = tokenizer.token_to_id("<image>")
    ids = [IMAGE_TOKEN_INDEX if i == image else i for i in ids]
    turns, num_images = [Turn("human", text)], text.count("<image>")
    assert ids == encode_prompt(turns, num_images, tokenizer, template, "test").tolist()


def test_jinja_refuses_unknown_roles_and_contents(tokenizers):
    hf, jinja = tokenizers["bpe"].hf, get_template("qwen_2").chat_template_jinja()
    for message, text in (
        ({"role": "tool", "content": "x"}, "role tool is not user"),
        ({"role": "user", "content": [{"type": "audio"}]}, "content type audio is not"),
    ):
        with pytest.raises(Exception, match=text):
            hf.apply_chat_template([message], chat_template=jinja)
