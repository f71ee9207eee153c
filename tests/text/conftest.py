"""Tiny tokenizers of every kind the package reads, trained on a few sentences."""

import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megatron_llava.text.tokenizer import load_tokenizer

CORPUS = [
    "USER: What is in the image? ASSISTANT: a cat on a mat.",
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "user\nassistant\nsystem\nYou are a helpful assistant.\n\nIt's 12 o'clock.\n\nno\n\nyes",
] * 4
SPECIAL_TOKENS = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image>",
]
# How Qwen 2 and Llama 3 cut text to words: several newlines make one word.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def save_bpe(folder: Path, **names: str) -> Path:
    """A byte-level BPE folder as Qwen and Llama 3 have."""
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(CORPUS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=rust, **names).save_pretrained(folder)
    return folder


def save_llama(folder: Path, model: Path, legacy: bool) -> Path:
    """A Vicuna-like folder: a SentencePiece model and a config that names LlamaTokenizer."""
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    sentencepiece.SentencePieceTrainer.train(
        # Without newlines: as in Llama's model, a newline is then the byte piece <0x0A>.
        sentence_iterator=iter(CORPUS[:3] * 4),
        model_prefix=str(path.with_suffix("")),
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return path


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory, sentencepiece_model):
    """name -> tokenizer. 'bpe*' know every template's special tokens; '*_image' know <image>."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {
        "bpe": load_tokenizer(save_bpe(root / "bpe", eos_token="<|im_end|>")),
        "bpe_bos": load_tokenizer(save_bpe(root / "bpe_bos", bos_token="<s>", eos_token="</s>")),
        "sentencepiece": load_tokenizer(sentencepiece_model),
        "llama_legacy": load_tokenizer(save_llama(root / "legacy", sentencepiece_model, True)),
        "llama": load_tokenizer(save_llama(root / "new", sentencepiece_model, False)),
    }
    for name in ("llama_legacy", "llama"):
        hf = AutoTokenizer.from_pretrained(made[name].hf.name_or_path)
        hf.add_tokens(["<image>"], special_tokens=True)
        hf.save_pretrained(root / f"{name}_image")
        made[f"{name}_image"] = load_tokenizer(root / f"{name}_image")
    return made
