import pickle

import pytest
from transformers import AutoTokenizer

from megatron_llava.text.tokenizer import load_tokenizer

KINDS = ["bpe", "bpe_bos", "sentencepiece", "llama_legacy", "llama"]


@pytest.mark.parametrize("kind", KINDS)
def test_encode_adds_nothing_and_knows_special_strings(tokenizers, kind):
    tokenizer = tokenizers[kind]
    eos = tokenizer.token_to_id("</s>")
    ids = tokenizer.encode("a cat</s>")
    assert ids[-1] == eos and ids.count(eos) == 1
    assert tokenizer.bos_id not in ids
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == "a cat"
    assert tokenizer.encode("") == []
    assert tokenizer.token_to_id("no such token") is None


def test_sentencepiece_ids(tokenizers):
    tokenizer = tokenizers["sentencepiece"]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
    assert tokenizer.encode("</s><s>") == [2, 1]
    # Both sides of a control piece are encoded as a text of their own.
    cat = tokenizer.encode("cat")
    assert tokenizer.encode("cat</s>cat") == [*cat, 2, *cat]
    assert tokenizer.encode("cat</s>cat") == tokenizers["llama_legacy"].encode("cat</s>cat")


def test_fingerprint_follows_what_decides_the_ids(tokenizers, tmp_path):
    prints = {kind: tokenizers[kind].fingerprint() for kind in KINDS}
    assert len(set(prints.values())) == len(KINDS)

    folder = tmp_path / "copy"
    tokenizers["bpe"].hf.save_pretrained(folder)
    copy = load_tokenizer(folder)
    assert copy.fingerprint() == prints["bpe"]
    copy.hf("a longer text", max_length=2, truncation=True)
    assert copy.fingerprint() == prints["bpe"]
    copy.hf.add_tokens(["<new>"])
    assert copy.fingerprint() != prints["bpe"]


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_tokenizers_travel_to_worker_processes(tokenizers, kind):
    tokenizer = tokenizers[kind]
    assert pickle.loads(pickle.dumps(tokenizer)).encode("a cat") == tokenizer.encode("a cat")


def test_vocab_size_covers_added_tokens(tokenizers, tmp_path):
    hf = AutoTokenizer.from_pretrained(tokenizers["bpe"].hf.name_or_path)
    hf.add_tokens(["<new>"])
    hf.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == tokenizers["bpe"].vocab_size + 1


def test_unusable_paths_are_one_line(tmp_path, sentencepiece_model):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.model").write_bytes(b"not a model")
    cases = [
        (tmp_path / "missing", "auto", "no such file or folder; looked for"),
        (tmp_path / "empty", "auto", "looked for tokenizer.json"),
        (tmp_path / "bad.model", "auto", "not a SentencePiece model"),
        (tmp_path / "empty", "SentencePieceTokenizer", "needs a .model file"),
        (sentencepiece_model, "HuggingFaceTokenizer", "needs the folder"),
    ]
    for path, kind, message in cases:
        with pytest.raises(ValueError) as caught:
            load_tokenizer(path, kind)
        text = str(caught.value)
        assert "\n" not in text
        assert f"--tokenizer-model {path}" in text and message in text
    with pytest.raises(ValueError, match="--tokenizer-type Wrong: unknown; use one of auto, Hugg"):
        load_tokenizer(sentencepiece_model, "Wrong")


@pytest.mark.parametrize("kind", ["bpe", "bpe_bos", "llama", "llama_legacy", "llama_image"])
@pytest.mark.parametrize(
    "text", ["", " a  cat\n", "<|im_start|>user\nno</s> yes", "<image>It's 12", "a" * 5000, "\n\n"]
)
def test_ids_are_those_of_transformers(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    expected = tokenizer.hf.encode(text, add_special_tokens=False, verbose=False)
    assert tokenizer.encode(text) == list(expected)
