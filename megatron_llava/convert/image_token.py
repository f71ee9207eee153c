"""The `<image>` token that transformers' LLaVA classes need, added to a tokenizer's files."""

from __future__ import annotations

from pathlib import Path

from megatron_llava.text.constants import IMAGE_PLACEHOLDER

VIDEO_PLACEHOLDER = "<video>"
VOCABULARY_MULTIPLE = 64  # what the published conversions pad a grown vocabulary to


def add_tokens(folder: Path, tokens: tuple[str, ...] = (IMAGE_PLACEHOLDER,)) -> dict[str, int]:
    """Make `tokens` special tokens of the tokenizer in `folder`, written back; their ids.

    Raises:
        ValueError: transformers cannot read the tokenizer.
    """
    from transformers import AddedToken, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    # transformers and tokenizers raise many kinds for files that they cannot use.
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{folder}: transformers cannot read its tokenizer: {first_line}"
        ) from error
    known = tokenizer.get_vocab()
    new = [AddedToken(t, special=True, normalized=False) for t in tokens if t not in known]
    if new:
        tokenizer.add_tokens(new, special_tokens=True)
        tokenizer.save_pretrained(folder)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return {token: vocabulary[token] for token in tokens}


def rows_for(vocab_size: int, largest_id: int) -> int:
    """Rows of an embedding that has to hold an id: as many as now, or padded if it has to grow."""
    if largest_id < vocab_size:
        return vocab_size
    return -(-(largest_id + 1) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
