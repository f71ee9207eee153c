"""Label masks against strings written out by hand, for each template and kind of tokenizer.

The brackets enclose what is trained, and (INST) stands for [INST]. The judge is transformers: the
offsets of the whole string's tokens, which the package never asks for.
"""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.text.conversation import encode_conversation
from megatron_llava.text.known_templates import TEMPLATES, get_template
from megatron_llava.text.templates import Turn
from megatron_llava.text.tokenizer import load_tokenizer
from tests.text.conftest import CORPUS, SPECIAL_TOKENS, save_bpe, save_llama

CHAT = (
    "A chat between a curious {0} and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the {0}'s questions. USER: <image>\nWhat is it? "
    "ASSISTANT:[ a cat</s>]USER: Is it red? ASSISTANT:[ no,\n  yes</s>]"
)
QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n[a cat<|im_end|>\n]"
    "<|im_start|>user\nIs it red?<|im_end|>\n<|im_start|>assistant\n[no,\n  yes<|im_end|>\n]"
)
IM_TURNS = (
    "<|im_end|><|im_start|>user\n<image>\nWhat is it?<|im_end|><|im_start|>assistant\n"
    "[a cat<|im_end|>]<|im_start|>user\nIs it red?<|im_end|><|im_start|>assistant\n"
    "[no,\n  yes<|im_end|>]"
)
FIXTURES = {
    "plain": "<image>[a cat\n]",
    "v1": CHAT.format("user"),
    "vicuna_v1": CHAT.format("user"),
    "chatml_direct": "<|im_start|>system\nAnswer the questions." + IM_TURNS,
    "mpt": (
        "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The "
        "assistant gives helpful and honest answers." + IM_TURNS
    ),
    "llava_llama_2": (
        "(INST) <<SYS>>\nYou are a helpful language and vision assistant. You are able to "
        "understand the visual content that the user provides, and assist the user with a variety "
        "of tasks using natural language.\n<</SYS>>\n\n<image>\nWhat is it? (/INST)[ a cat </s>]"
        "<s>(INST) Is it red? (/INST)[ no,\n  yes </s>]"
    ),
    "mistral_instruct": (
        "(INST) <image>\nWhat is it? (/INST)[ a cat </s>](INST) Is it red? (/INST)"
        "[ no,\n  yes </s>]"
    ),
    "llava_v1": CHAT.format("human"),
    "qwen_1_5": QWEN,
    "qwen_2": QWEN,
    "llava_llama_3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language "
        "and vision assistant. You are able to understand the visual content that the user "
        "provides, and assist the user with a variety of tasks using natural language.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[a cat<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\nIs it red?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[no,\n  yes<|eot_id|>]"
    ),
}
TURNS = [
    Turn("human", "<image>\nWhat is it?"),
    Turn("gpt", "a cat"),
    Turn("human", "Is it red?"),
    Turn("gpt", "no,\n  yes"),
]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, sentencepiece_model):
    """SentencePiece as Vicuna has it, byte BPE as GPT-2's, byte BPE that cuts as Llama 3's."""
    root = tmp_path_factory.mktemp("kinds")
    llama = AutoTokenizer.from_pretrained(save_llama(root / "vicuna", sentencepiece_model, False))
    llama.add_tokens(SPECIAL_TOKENS, special_tokens=True)
    llama.save_pretrained(root / "sentencepiece")
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    rust.train_from_iterator(CORPUS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=rust).save_pretrained(root / "byte_bpe")
    save_bpe(root / "llama_3_style")
    return root


def plain_text(part):
    return part.replace("(INST)", "[INST]").replace("(/INST)", "[/INST]")


def judged(hf, fixture):
    """Token ids and mask of a fixture, by which of its tokens lie between brackets."""
    text, spans = "", []
    for part in fixture.split("["):
        trained, closed, rest = part.partition("]")
        if closed:
            spans.append((len(text), len(text) + len(plain_text(trained))))
        text += plain_text(trained) + plain_text(rest)
    encoded = hf(text, add_special_tokens=False, return_offsets_mapping=True)
    image = hf.convert_tokens_to_ids("<image>")
    ids = [IMAGE_TOKEN_INDEX if token == image else token for token in encoded["input_ids"]]
    # By the end: the token of a word may begin before the space that belongs to it.
    ends = [end for _, end in encoded["offset_mapping"]]
    return ids, [int(any(first < end <= last for first, last in spans)) for end in ends]


@pytest.mark.proves("C1", "D11")
@pytest.mark.parametrize("kind", ["sentencepiece", "byte_bpe", "llama_3_style"])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_masks_equal_the_fixture(kinds, kind, name):
    tokenizer, template = load_tokenizer(kinds / kind), get_template(name)
    turns = TURNS[:2] if template.images_only else TURNS
    encoded = encode_conversation(turns, 1, tokenizer, template, "test")
    ids, mask = judged(AutoTokenizer.from_pretrained(kinds / kind), FIXTURES[name])
    if template.add_bos and tokenizer.bos_id is not None:
        ids, mask = [tokenizer.bos_id, *ids], [0, *mask]
    np.testing.assert_array_equal(encoded.token_ids, ids)
    np.testing.assert_array_equal(encoded.label_mask, mask)
