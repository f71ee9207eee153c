"""One small tokenizer interface over Hugging Face folders and SentencePiece models."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

TOKENIZER_TYPES = ("auto", "HuggingFaceTokenizer", "SentencePieceTokenizer")


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer.

    Attributes:
        vocab_size: one more than the largest token id, added tokens included.
        bos_id, eos_id, pad_id: None where the tokenizer has no such token.
        eos_token: the token of eos_id as a text has it.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    eos_token: str | None

    def __hash__(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Adds no special token; one written in `text` becomes its id."""

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """What `encode` gives for each text, in less time."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""

    def token_to_id(self, token: str) -> int | None:
        """Id of one vocabulary entry, None if there is no such entry."""

    def fingerprint(self) -> str:
        """Hex digest of everything that decides `encode`; equal digests mean equal token ids."""


class HFTokenizer:
    """A folder that `transformers.AutoTokenizer` can read; nothing is ever downloaded."""

    def __init__(self, path: str | Path) -> None:
        from transformers import AutoTokenizer

        try:
            self.hf: Any = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        except Exception as error:  # transformers raises many kinds for an unusable folder
            raise ValueError(
                f"--tokenizer-model {path}: not a usable Hugging Face tokenizer folder (looked for "
                f"tokenizer.json or tokenizer_config.json with its vocabulary files): "
                f"{_first_line(error)}"
            ) from error
        self._backend = self.hf.backend_tokenizer if self.hf.is_fast else None
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self.vocab_size: int = max(self.hf.get_vocab().values()) + 1
        self.bos_id: int | None = self.hf.bos_token_id
        self.eos_id: int | None = self.hf.eos_token_id
        self.pad_id: int | None = self.hf.pad_token_id
        self.eos_token: str | None = self.hf.eos_token

    def encode(self, text: str) -> list[int]:
        if self._backend is not None:
            # Four times as fast as through transformers, which adds nothing to the ids here.
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
            return ids
        # verbose=False: a text longer than the model's limit is judged later, with its images.
        return list(self.hf.encode(text, add_special_tokens=False, verbose=False))

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        if self._backend is None:
            return [self.encode(text) for text in texts]
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        ids = [int(i) for i in ids]
        return str(
            self.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def token_to_id(self, token: str) -> int | None:
        # Unknown tokens come back as the id of "<unk>" (or None), hence the way back.
        token_id = self.hf.convert_tokens_to_ids(token)
        if token_id is None or self.hf.convert_ids_to_tokens(token_id) != token:
            return None
        return int(token_id)

    def fingerprint(self) -> str:
        if self.hf.is_fast:
            state = json.loads(self.hf.backend_tokenizer.to_str())
            # Set by how a call pads or what it adds around the text; `encode` uses none of them.
            for part in ("truncation", "padding", "post_processor", "decoder"):
                state.pop(part, None)
        else:
            state = {"class": type(self.hf).__name__, "vocab": self.hf.get_vocab()}
        return _digest(json.dumps([state, self.bos_id, self.eos_id], sort_keys=True).encode())


class SentencePieceTokenizer:
    """A SentencePiece `.model` file.

    The library treats control pieces (`<s>`, `</s>`, ...) in a text as plain characters. Here the
    text is split at them, so that a template may write `</s>`. Each part is encoded by itself and
    so gets the model's dummy space prefix, as in the slow Llama tokenizer that LLaVA trained with.
    """

    def __init__(self, path: str | Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.sp: Any = SentencePieceProcessor()
        try:
            self.sp.Load(str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"--tokenizer-model {path}: not a SentencePiece model: {_first_line(error)}"
            ) from error
        self.vocab_size: int = self.sp.vocab_size()
        self.bos_id = _or_none(self.sp.bos_id())
        self.eos_id = _or_none(self.sp.eos_id())
        self.pad_id = _or_none(self.sp.pad_id())
        self.eos_token = None if self.eos_id is None else str(self.sp.id_to_piece(self.eos_id))
        ids = [i for i in range(self.vocab_size) if self.sp.is_control(i)]
        self._control: dict[str, int] = {self.sp.id_to_piece(i): i for i in ids}
        longest_first = sorted(self._control, key=len, reverse=True)
        # "(?!)" matches nothing: a model without control pieces is never split.
        self._split = re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(text):
            if part in self._control:
                ids.append(self._control[part])
            elif part:
                ids.extend(self.sp.encode(part))
        return ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.sp.decode([int(i) for i in ids]))

    def token_to_id(self, token: str) -> int | None:
        token_id = int(self.sp.piece_to_id(token))
        return token_id if self.sp.id_to_piece(token_id) == token else None

    def fingerprint(self) -> str:
        return _digest(b"sentencepiece\n" + self.sp.serialized_model_proto())


def load_tokenizer(path: str | Path, tokenizer_type: str = "auto") -> Tokenizer:
    """Open the tokenizer that --tokenizer-model names.

    Args:
        path: a Hugging Face folder, or a SentencePiece `.model` file.
        tokenizer_type: one of TOKENIZER_TYPES. "auto" takes a file as SentencePiece and a folder
            as Hugging Face.

    Raises:
        ValueError: one line naming --tokenizer-model and what was looked for.
    """
    if tokenizer_type not in TOKENIZER_TYPES:
        raise ValueError(
            f"--tokenizer-type {tokenizer_type}: unknown; use one of {', '.join(TOKENIZER_TYPES)}"
        )
    path = Path(path)
    if not path.exists():
        raise ValueError(
            f"--tokenizer-model {path}: no such file or folder; looked for a Hugging Face folder "
            "or a SentencePiece .model file on this machine (nothing is downloaded)"
        )
    kind = tokenizer_type
    if kind == "auto":
        kind = "HuggingFaceTokenizer" if path.is_dir() else "SentencePieceTokenizer"
    if kind == "HuggingFaceTokenizer":
        if not path.is_dir():
            raise ValueError(
                f"--tokenizer-model {path}: is a file, --tokenizer-type {kind} needs the folder"
            )
        return HFTokenizer(path)
    if not path.is_file():
        raise ValueError(
            f"--tokenizer-model {path}: is a folder, --tokenizer-type {kind} needs a .model file"
        )
    return SentencePieceTokenizer(path)


def _or_none(token_id: int) -> int | None:
    """SentencePiece says -1 for a token that the model lacks."""
    return int(token_id) if token_id >= 0 else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
