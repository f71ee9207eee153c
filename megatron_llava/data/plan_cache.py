"""Packing plans on disk, so that a resumed run and every rank of a node make a plan once."""

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_llava.data.packing import Balance, PackingPlan, plan_epoch

# Raise it with every change to plan_epoch that changes a plan.
PLAN_VERSION = 5


def cached_plan(
    lengths: np.ndarray,
    capacity: int,
    *,
    store_fingerprint: str,
    cache_path: Path,
    name: str,
    views: np.ndarray | None = None,
    balance: Balance | None = None,
    with_images: np.ndarray | None = None,
    **how: int | None,
) -> PackingPlan:
    """`plan_epoch`, read from `cache_path` where it was made before, else made and kept there.

    Processes that make the same plan at once write it under names of their own and rename it, so
    none waits for another. A file that cannot be read, or holds another plan, is replaced.

    Args:
        lengths, views: int64 [n]; with the store's fingerprint they stand for all that precedes
            packing.
        store_fingerprint: `Store.fingerprint`.
        cache_path: directory of the plans, made if needed.
        name: start of the file's name.
        with_images: bool [n], likewise.
        balance, how: the other arguments of `plan_epoch`.

    Raises:
        ValueError: the directory cannot be written; names --data-cache-path.
    """
    settings = [
        PLAN_VERSION,
        store_fingerprint,
        capacity,
        None if balance is None else asdict(balance),
        sorted(how.items()),
    ]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for array in (lengths, views):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).data)
    if with_images is not None:
        digest.update(np.packbits(with_images).data)
    key = digest.hexdigest()
    path = cache_path / f"{name}_plan_{key[:16]}.npz"
    plan = _read(path, key, len(lengths))
    if plan is None:
        options: dict[str, Any] = {**how, "views": views, "balance": balance}
        if with_images is not None:
            options["with_images"] = with_images
        plan = plan_epoch(lengths, capacity, **options)
        # A disk that fills up meanwhile costs a plan made anew, seconds, and nothing else.
        with contextlib.suppress(OSError):
            _write(path, key, plan)
    return plan


def _read(path: Path, key: str, num_samples: int) -> PackingPlan | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            plan = PackingPlan(
                pack_offsets=arrays["pack_offsets"],
                sample_ids=arrays["sample_ids"],
                pack_rows=arrays["pack_rows"],
            )
    # A damaged zip file raises any of these; its checksums find the rest.
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    complete = len(plan.sample_ids) == num_samples and len(plan.pack_offsets) == len(plan) + 1
    return plan if complete else None


def _write(path: Path, key: str, plan: PackingPlan) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f"{path.name}.partial-", dir=path.parent)
    except OSError as error:
        raise ValueError(
            f"cannot write the packing plan to {path.parent}: {error.strerror}; "
            "choose another --data-cache-path"
        ) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(
                stream,
                key=np.array(key),
                pack_offsets=plan.pack_offsets,
                sample_ids=plan.sample_ids,
                pack_rows=plan.pack_rows,
            )
        # mkstemp's file is for its owner alone; a plan is as public as its store.
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
