import pytest

from megatron_llava.data.describe import describe_sample
from megatron_llava.text.tokenizer import load_tokenizer
from megatron_llava.vision.token_layout import number_of_tokens


def test_description(store, tokenizer_folder, image_settings):
    tokenizer = load_tokenizer(tokenizer_folder)
    text = describe_sample(store, 0, tokenizer, image_settings)
    tokens, mask = store.sample(0)
    visual = number_of_tokens((20, 9), image_settings)
    lines = text.splitlines()
    source = f"{store.prefix.parent}/data.json: record 0 (id=r0)"
    assert lines[0] == f"store {store.prefix}: sample 0 ({source})"
    assert lines[1].startswith("image 0: 20x9 pixels, ") and lines[1].endswith(
        f" {visual} visual tokens"
    )
    assert lines[2] == (
        f"{len(tokens) - 1 + visual} positions, of them {len(tokens) - 1} text tokens, "
        f"{mask.sum()} supervised"
    )
    start, end = (tokenizer.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    assert "\n".join(lines[3:]).endswith(
        f"<{start}>user\n<image>\nWhat is shown in number 0? <{end}>\n"
        f"<{start}>assistant\n[[Answer 0 <{end}>\n]]"
    )


def test_bad_arguments(store, tokenizer_folder, image_settings):
    tokenizer = load_tokenizer(tokenizer_folder)
    with pytest.raises(ValueError, match=r"store: no sample 40, it has 40 \(from 0\)"):
        describe_sample(store, 40, tokenizer, image_settings)
