"""Records and images to a store: checked and tokenised in processes, written in input order."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TextIO

import numpy as np

from megatron_llava.data.duplicates import SeenRecords
from megatron_llava.data.mixture import Mixture
from megatron_llava.data.mixture_file import open_records
from megatron_llava.data.preprocess_settings import PreprocessSettings, PreprocessSummary
from megatron_llava.data.quality import Quality
from megatron_llava.data.record_progress import RecordProgress
from megatron_llava.data.records import parse_record
from megatron_llava.data.store_files import check_output_prefix
from megatron_llava.data.visuals import VisualSettings, read_visuals
from megatron_llava.text.conversation import encode_conversation
from megatron_llava.text.known_templates import get_template
from megatron_llava.text.placement import front_share, place_images
from megatron_llava.text.templates import Template
from megatron_llava.text.tokenizer import Tokenizer, load_tokenizer

# A chunk travels between processes at once: large enough to hide the trip, small enough that the
# image bytes of all chunks in flight (4 per worker) fit in memory.
_CHUNK = 16
_CHUNKS_IN_FLIGHT = 4


@dataclass(frozen=True, kw_only=True)
class EncodedRecord:
    """One record ready to be stored: see `StoreWriter.add`."""

    token_ids: np.ndarray
    label_mask: np.ndarray
    images: list[bytes]
    sizes: list[tuple[int, int]]


class LeftOut(NamedTuple):
    """A record that a quality filter does not want."""

    flag: str


EncodedResult = EncodedRecord | LeftOut | str
"""A str is the message of a bad record."""


def encode_record(
    raw: Any,
    source: str,
    tokenizer: Tokenizer,
    template: Template,
    visuals: VisualSettings,
    *,
    llava_labels: bool = False,
    share_in_front: float = 0.0,
    seed: int = 0,
    quality: Quality,
) -> EncodedRecord | LeftOut:
    """Check and tokenise one raw record, and read its images and videos.

    Args:
        visuals: where those are.
        llava_labels: see `encode_conversation`.
        share_in_front, seed: see `place_images`; not for records with videos.
        quality: which records are left out.

    Raises:
        ValueError: one line that starts with `source`.
    """
    record = parse_record(raw, source)
    read = read_visuals(record, visuals)
    if flag := quality.reason_against(record, read):
        return LeftOut(flag)
    turns = read.turns if record.videos else place_images(read.turns, share_in_front, seed)
    encoded = encode_conversation(
        turns, len(read.items), tokenizer, template, source, llava_labels=llava_labels
    )
    return EncodedRecord(
        token_ids=encoded.token_ids,
        label_mask=encoded.label_mask,
        images=read.items,
        sizes=read.sizes,
    )


def preprocess(settings: PreprocessSettings, *, log: TextIO = sys.stderr) -> PreprocessSummary:
    """Make a store. The output does not depend on the number of workers.

    Raises:
        ValueError: one line: a setting that cannot be used, or the bad record that is one more than
            `max_bad_records`. Nothing is left under the output prefix.
    """
    started = time.monotonic()
    _check_settings(settings)
    tokenizer, template = _load_text(settings)
    records = _Shard(
        open_records(settings.input, settings.seed, settings.data_root), *settings.shard
    )
    # Core takes seconds to import: not before what may end the run at once, and never in a worker.
    from megatron_llava.data.store_writer import StoreWriter

    progress = RecordProgress(len(records), log)
    bad = 0
    left_out: Counter[str] = Counter()
    seen = SeenRecords() if settings.drop_exact_duplicates else None
    writer = StoreWriter(
        settings.output_prefix,
        tokenizer_fingerprint=tokenizer.fingerprint(),
        conversation_template=_described(settings),
        overwrite=settings.overwrite,
    )
    with writer, closing(_encoded(records, settings)) as results:
        for result in results:
            progress.advance()
            if isinstance(result, EncodedRecord):
                if seen is not None and seen.again(result.token_ids, result.images):
                    left_out["--drop-exact-duplicates"] += 1
                    continue
                writer.add(result.token_ids, result.label_mask, result.images, result.sizes)
                continue
            if isinstance(result, LeftOut):
                left_out[result.flag] += 1
                continue
            bad += 1
            if bad > settings.max_bad_records:
                raise ValueError(_too_many_bad(result, bad, settings.max_bad_records))
            progress.print_line(f"skipped: {result}")
        progress.finish()
        if left_out and not writer.counts["samples"]:
            raise ValueError(_none_left(left_out))
        writer.finish()
        counts = writer.counts
    return PreprocessSummary(
        samples=counts["samples"],
        images=counts["images"],
        tokens=counts["tokens"],
        supervised_tokens=counts["supervised_tokens"],
        bad_records=bad,
        left_out=dict(sorted(left_out.items())),
        seconds=time.monotonic() - started,
    )


def _check_settings(settings: PreprocessSettings) -> None:
    check_output_prefix(settings.output_prefix, settings.overwrite)
    if settings.workers < 1:
        raise ValueError(f"--workers {settings.workers}: expected at least 1")
    if settings.max_bad_records < 0:
        raise ValueError(f"--max-bad-records {settings.max_bad_records}: expected at least 0")
    for kind, folder in (("image", settings.image_folder), ("video", settings.video_folder)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"--{kind}-folder {folder}: no such directory")
    settings.visuals()
    Quality(settings)
    front_share(settings.multi_image_placement)


class _Shard:
    """Share `number` of `count` of some records: the shares one after the other are all of them."""

    def __init__(self, records: Mixture, number: int, count: int) -> None:
        if not 0 <= number < count:
            raise ValueError(f"--shard {number}/{count}: shards are 0/N to N-1/N")
        self._records = records
        self._begin = len(records) * number // count
        self._end = len(records) * (number + 1) // count
        if self._begin == self._end:
            raise ValueError(
                f"--shard {number}/{count}: none of the {len(records)} records is in it"
            )

    def __len__(self) -> int:
        return self._end - self._begin

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self._records.between(self._begin, self._end)


def _too_many_bad(message: str, bad: int, allowed: int) -> str:
    if allowed == 0:
        return f"{message} (--max-bad-records N skips up to N such records)"
    return f"{message}; this is bad record {bad}, --max-bad-records is {allowed}"


def _none_left(left_out: Counter[str]) -> str:
    reasons = ", ".join(f"{flag} {count}" for flag, count in sorted(left_out.items()))
    return f"no record is left: {reasons} of {left_out.total()}; lower these filters"


def _described(settings: PreprocessSettings) -> str:
    """How text was made of records, for the manifest."""
    text = settings.conversation_template
    if settings.label_compat == "llava":
        text += " with llava's labels"
    if settings.multi_image_placement != "interleaved":
        text += f", several images {settings.multi_image_placement}"
    return text


def _load_text(settings: PreprocessSettings) -> tuple[Tokenizer, Template]:
    if settings.conversation_template != "hf":
        get_template(settings.conversation_template)
    tokenizer = load_tokenizer(settings.tokenizer_model, settings.tokenizer_type)
    template = get_template(settings.conversation_template, tokenizer)
    template.check_tokenizer(tokenizer)
    return tokenizer, template


def _encoded(
    records: Iterable[tuple[str, Any]], settings: PreprocessSettings
) -> Generator[EncodedResult, None, None]:
    """The records encoded, or the message of a bad one, in order; a bounded number is in flight."""
    iterator = iter(records)
    chunks = iter(lambda: list(islice(iterator, _CHUNK)), [])
    if settings.workers == 1:
        encode = _ChunkEncoder(settings)
        for chunk in chunks:
            yield from encode(chunk)
        return
    # Forked workers share what is imported already; elsewhere they start from nothing.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pending: deque[Future[list[EncodedResult]]] = deque()
    with ProcessPoolExecutor(settings.workers, context, _start_worker, (settings,)) as pool:
        try:
            for chunk in chunks:
                pending.append(pool.submit(_encode_chunk, chunk))
                if len(pending) >= _CHUNKS_IN_FLIGHT * settings.workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class _ChunkEncoder:
    """Encodes chunks of raw records with a tokenizer of its own."""

    def __init__(self, settings: PreprocessSettings) -> None:
        self._tokenizer, self._template = _load_text(settings)
        self._visuals = settings.visuals()
        self._llava_labels = settings.label_compat == "llava"
        self._share_in_front = front_share(settings.multi_image_placement)
        self._seed = settings.seed
        self._quality = Quality(settings)

    def __call__(self, chunk: list[tuple[str, Any]]) -> list[EncodedResult]:
        return [self._encode(raw, source) for source, raw in chunk]

    def _encode(self, raw: Any, source: str) -> EncodedResult:
        try:
            return encode_record(
                raw,
                source,
                self._tokenizer,
                self._template,
                self._visuals,
                llava_labels=self._llava_labels,
                share_in_front=self._share_in_front,
                seed=self._seed,
                quality=self._quality,
            )
        except ValueError as error:
            return str(error)


_worker_encoder: Callable[[list[tuple[str, Any]]], list[EncodedResult]] | None = None


def _start_worker(settings: PreprocessSettings) -> None:
    """Runs once in each worker process."""
    global _worker_encoder
    # An interrupt reaches the whole process group; the parent alone cleans up after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A parent that was killed closes no queue: without this the workers would wait for ever.
    threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()
    _worker_encoder = _ChunkEncoder(settings)


def _exit_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


def _encode_chunk(chunk: list[tuple[str, Any]]) -> list[EncodedResult]:
    assert _worker_encoder is not None
    return _worker_encoder(chunk)
