"""Writing a store: under temporary names, renamed when everything is there, the manifest last."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_llava.data.store import count_images, file_sha256
from megatron_llava.data.store_files import (
    COUNTS,
    FORMAT_VERSION,
    PIECES,
    check_output_prefix,
    manifest_file,
    piece_files,
)
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX


class StoreWriter:
    """Context manager that appends samples and publishes the store when `finish` is called.

    Leaving the context without `finish` (an error, an interrupt) removes what was written. The
    parts grow in a directory 'P.partial-*' beside the store: a killed process leaves at most that.

    Args:
        prefix: the store appears as prefix.json, prefix_tokens.bin and so on; its directory is made
            if needed.
        tokenizer_fingerprint, conversation_template: recorded in the manifest.
        provenance: JSON object that says what the store was made of, recorded as it is.
        overwrite: replace a store that is there already.

    Raises:
        ValueError: a file of the store exists and `overwrite` is off.
    """

    def __init__(
        self,
        prefix: str | Path,
        *,
        tokenizer_fingerprint: str,
        conversation_template: str,
        provenance: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.prefix = Path(prefix)
        check_output_prefix(prefix, overwrite)
        self._tokenizer_fingerprint = tokenizer_fingerprint
        self._conversation_template = conversation_template
        self._provenance = provenance or {}
        self._counts = dict.fromkeys(COUNTS, 0)

    def __enter__(self) -> "StoreWriter":
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._partial = Path(
            tempfile.mkdtemp(prefix=f"{self.prefix.name}.partial-", dir=self.prefix.parent)
        )
        self._builders = {
            piece: IndexedDatasetBuilder(
                str(self._partial / f"{self.prefix.name}_{piece}.bin"), dtype
            )
            for piece, dtype in PIECES.items()
        }
        self._digests = {piece: hashlib.sha256() for piece in PIECES}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for builder in self._builders.values():
            builder.data_file.close()
        shutil.rmtree(self._partial)

    @property
    def counts(self) -> dict[str, int]:
        """What was added so far; tokens do not count placeholders."""
        return dict(self._counts)

    def add(
        self,
        token_ids: np.ndarray,
        label_mask: np.ndarray,
        images: Sequence[bytes],
        sizes: Sequence[tuple[int, int]],
        source: str = "",
    ) -> None:
        """Append one sample.

        Args:
            token_ids: int32 [n], IMAGE_TOKEN_INDEX once per image.
            label_mask: uint8 [n].
            images: encoded bytes of each image, the item of each video.
            sizes: (width, height) of each image, in pixels; (frames, 0) of a video.
            source: where the record was found.
        """
        placeholders = count_images(token_ids)
        assert len(token_ids) == len(label_mask) > 0
        assert placeholders == len(images) == len(sizes)
        self._append("tokens", np.asarray(token_ids, dtype=np.int32), [len(token_ids)])
        self._append("mask", np.asarray(label_mask, dtype=np.uint8), [len(label_mask)])
        self._append("images", images, [len(image) for image in images])
        self._append("sizes", np.array(sizes, dtype=np.int32), [2] * len(sizes))
        # A path may hold what is no UTF-8.
        written = source.encode(errors="surrogateescape")
        self._append("sources", [written], [len(written)])
        self._counts["samples"] += 1
        self._counts["images"] += len(images)
        self._counts["videos"] += sum(height == 0 for _, height in sizes)
        self._counts["tokens"] += len(token_ids) - placeholders
        self._counts["supervised_tokens"] += int(np.count_nonzero(label_mask))
        self._counts["image_bytes"] += sum(map(len, images))

    def _append(
        self, piece: str, values: np.ndarray | Sequence[bytes], lengths: Sequence[int]
    ) -> None:
        """What the builder's add_document does, which copies everything twice on the way."""
        builder, digest = self._builders[piece], self._digests[piece]
        for part in (values.tobytes(),) if isinstance(values, np.ndarray) else values:
            builder.data_file.write(part)
            # The hash of what was handed over also tells when the disk did not keep it.
            digest.update(part)
        builder.sequence_lengths.extend(lengths)
        builder.end_document()

    def finish(self) -> dict[str, Any]:
        """Publish the store and return its manifest.

        Raises:
            ValueError: no sample was added.
        """
        if self._counts["samples"] == 0:
            raise ValueError(f"{self.prefix}: no sample to write")
        files = {}
        for piece, builder in self._builders.items():
            data = self._partial / f"{self.prefix.name}_{piece}.bin"
            index = data.with_suffix(".idx")
            builder.finalize(str(index))
            files[data.name] = {
                "bytes": data.stat().st_size,
                "sha256": self._digests[piece].hexdigest(),
            }
            files[index.name] = {"bytes": index.stat().st_size, "sha256": file_sha256(index)}
        manifest = {
            "format_version": FORMAT_VERSION,
            "counts": self._counts,
            "tokenizer_fingerprint": self._tokenizer_fingerprint,
            "conversation_template": self._conversation_template,
            "image_token_index": IMAGE_TOKEN_INDEX,
            "provenance": self._provenance,
            "files": files,
        }
        self._publish(manifest)
        return manifest

    def _publish(self, manifest: dict[str, Any]) -> None:
        written = self._partial / manifest_file(self.prefix).name
        written.write_text(json.dumps(manifest, indent=2) + "\n")
        for path in self._partial.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        # From here to the last rename there is no manifest, so no store is half old and half new.
        manifest_file(self.prefix).unlink(missing_ok=True)
        for path in piece_files(self.prefix):
            os.replace(self._partial / path.name, path)
        os.replace(written, manifest_file(self.prefix))
