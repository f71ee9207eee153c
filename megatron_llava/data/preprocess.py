"""Records and images to a store, in the order of the input."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any, TextIO

from megatron_llava.data.bad_records import BadRecords
from megatron_llava.data.duplicates import SeenRecords
from megatron_llava.data.encode_records import ChunkEncoder, LeftOut, load_text
from megatron_llava.data.mixture import Mixture
from megatron_llava.data.mixture_file import open_records
from megatron_llava.data.preprocess_settings import PreprocessSettings, PreprocessSummary
from megatron_llava.data.quality import Quality
from megatron_llava.data.record_processes import in_processes
from megatron_llava.data.record_progress import RecordProgress
from megatron_llava.data.store_files import check_output_prefix
from megatron_llava.text.placement import front_share


def preprocess(settings: PreprocessSettings, *, log: TextIO = sys.stderr) -> PreprocessSummary:
    """Make a store. The output does not depend on the number of workers.

    Raises:
        ValueError: one line: a setting that cannot be used, or the bad record that is one more than
            `max_bad_records`. Nothing is left under the output prefix.
    """
    started = time.monotonic()
    _check_settings(settings)
    tokenizer, _ = load_text(settings)
    records = _Shard(
        open_records(settings.input, settings.seed, settings.data_root), *settings.shard
    )
    # Core takes seconds to import: not before what may end the run at once, and never in a worker.
    from megatron_llava.data.store_writer import StoreWriter

    progress = RecordProgress(len(records), log)
    bad = BadRecords(settings.max_bad_records)
    left_out: Counter[str] = Counter()
    split = 0
    seen = SeenRecords() if settings.drop_exact_duplicates else None
    writer = StoreWriter(
        settings.output_prefix,
        tokenizer_fingerprint=tokenizer.fingerprint(),
        conversation_template=_described(settings),
        provenance={"flags": settings.given(), "input": records.describe()},
        overwrite=settings.overwrite,
    )
    encoded = in_processes(records, partial(ChunkEncoder, settings), settings.workers)
    with writer, closing(encoded) as results:
        for result in results:
            progress.advance()
            if isinstance(result, LeftOut):
                left_out[result.flag] += 1
            elif isinstance(result, str):
                bad.skip(result, progress)
            else:
                split += len(result) > 1
                for sample in result:
                    if seen is not None and seen.again(sample.token_ids, sample.images):
                        left_out["--drop-exact-duplicates"] += 1
                    else:
                        writer.add(
                            sample.token_ids,
                            sample.label_mask,
                            sample.images,
                            sample.sizes,
                            sample.source,
                        )
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
        bad_records=bad.count,
        left_out=dict(sorted(left_out.items())),
        split_records=split,
        seconds=time.monotonic() - started,
    )


def _check_settings(settings: PreprocessSettings) -> None:
    check_output_prefix(settings.output_prefix, settings.overwrite)
    if settings.workers < 1:
        raise ValueError(f"--workers {settings.workers}: expected at least 1")
    if settings.split_turns < 0:
        raise ValueError(f"--split-turns {settings.split_turns}: expected 0 (off) or more")
    BadRecords(settings.max_bad_records)
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

    def describe(self) -> list[str]:
        """See `Mixture.describe`."""
        return self._records.describe()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self._records.between(self._begin, self._end)


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
