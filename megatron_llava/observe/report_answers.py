"""What tools/evaluate.py wrote, for a report: accuracy by kind of question, and pictures."""

from __future__ import annotations

import base64
import html
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from megatron_llava.data.image_source import inside, read_image
from megatron_llava.data.tar_records import VIDEO_SUFFIXES
from megatron_llava.inference.answer_match import any_exact_match
from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.vision.tiles import image_size, open_image

Row = dict[str, Any]

_KEYS = ("id", "kind", "image", "question", "answer", "truth")
# A picture is put in as it is up to these pixels and bytes, a larger one as a thumbnail.
_SIDE, _BYTES = 320, 1 << 16
_ALL = "all kinds"
_TRUTHS_SHOWN = 3


def read_answers(path: str | Path) -> list[Row]:
    """The rows of a file that ``tools/evaluate.py --output`` wrote, at least one.

    Raises:
        ValueError: one line naming the file, and the line that is not an answer.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot read answers: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: cannot read answers: it is not UTF-8 text") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(
                f"{path}:{number}: not JSON; write it again with tools/evaluate.py --output"
            ) from None
        missing = [key for key in _KEYS if not isinstance(row, dict) or key not in row]
        if missing:
            raise ValueError(
                f"{path}:{number}: has no {', '.join(missing)}; write it again with "
                "tools/evaluate.py --output"
            )
        truths = row.get("truths", [row["truth"]])
        if not isinstance(truths, list) or not truths:
            raise ValueError(
                f"{path}:{number}: truths is {truths!r:.60}; write it again with "
                "tools/evaluate.py --output"
            )
        row = {**row, **{key: str(row[key]) for key in _KEYS if key != "image"}}
        rows.append({**row, "truths": [str(truth) for truth in truths]})
    if not rows:
        raise ValueError(f"{path}: holds no answers; write it with tools/evaluate.py --output")
    return rows


def accuracy_table(rows: list[Row], blank: list[Row] | None = None) -> str:
    """Exact match by kind of question, with the pictures and with greyed ones.

    Raises:
        ValueError: both were not asked the same.
    """
    seen, guessed = _counts(rows), {} if blank is None else _counts(blank)
    if blank is not None and {k: n for k, (_, n) in seen.items()} != {
        k: n for k, (_, n) in guessed.items()
    }:
        raise ValueError(
            f"--answers has {_told(seen)} but --blank-answers has {_told(guessed)}; evaluate both "
            "on the same questions"
        )
    heads = ["kind of question", "questions", "exact match"]
    if blank is not None:
        heads[2:] = ["with pictures", "pictures greyed", "difference"]
    lines = [f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"]
    for kind, (right, number) in seen.items():
        share = 100 * right / number
        cells = [html.escape(kind), f"{number:,}", f"{share:.1f} %"]
        if blank is not None:
            blind = 100 * guessed[kind][0] / number
            cells += [f"{blind:.1f} %", f"{share - blind:+.1f}"]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        mark = ' class="total"' if kind == _ALL else ""
        lines.append(f"<tr{mark}>{row}</tr>")
    return f'<div class="wide"><table class="numbers">{"".join(lines)}</table></div>'


def _counts(rows: list[Row]) -> dict[str, tuple[int, int]]:
    """{kind: (right answers, questions)} in the order of first appearance, and of all."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        counts[row["kind"]][0] += int(any_exact_match(row["answer"], row["truths"]))
        counts[row["kind"]][1] += 1
    right, number = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    return {**{kind: (pair[0], pair[1]) for kind, pair in counts.items()}, _ALL: (right, number)}


def _told(counts: dict[str, tuple[int, int]]) -> str:
    kinds = [f"{number} {kind!r:.40}" for kind, (_, number) in counts.items() if kind != _ALL]
    more = f" and {len(kinds) - 4} kinds more" if len(kinds) > 4 else ""
    return f"{', '.join(kinds[:4])}{more}"


def answer_figures(
    rows: list[Row], number: int, image_folder: Path | None, path: str | Path
) -> str:
    """Up to so many questions with picture, answer and truth; the kinds take turns.

    Args:
        path: the file of the answers, for messages.

    Raises:
        ValueError: one line naming the answer whose picture cannot be read.
    """
    figures = (_figure(row, image_folder, f"{path}: {row['id']}") for row in _turns(rows)[:number])
    return f'<div class="answers">{"".join(figures)}</div>'


def _turns(rows: list[Row]) -> list[Row]:
    """All rows, one of each kind after the other, so that the first few leave no kind out."""
    queues: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        queues[row["kind"]].append(row)
    longest = max(len(queue) for queue in queues.values())
    return [queue[i] for i in range(longest) for queue in queues.values() if i < len(queue)]


def _figure(row: Row, image_folder: Path | None, source: str) -> str:
    is_right = any_exact_match(row["answer"], row["truths"])
    truths = " or ".join(list(dict.fromkeys(row["truths"]))[:_TRUTHS_SHOWN])
    note = "right" if is_right else f"wrong, it is <b>{html.escape(truths)}</b>"
    answer = html.escape(row["answer"]) or "<i>nothing</i>"
    question = html.escape(row["question"].removeprefix(IMAGE_PLACEHOLDER).strip())
    return (
        f'<figure class="{"right" if is_right else "wrong"}">'
        f'<div class="frame">{_picture(row["image"], image_folder, source)}</div><figcaption>'
        f'{question}<br><span class="answer">{answer}</span> ({note})'
        "</figcaption></figure>"
    )


def _picture(name: Any, image_folder: Path | None, source: str) -> str:
    """An image element that holds its own bytes; words where the question has no image."""
    if name is None:
        return "<p>no image</p>"
    name = str(name)
    is_video = Path(name).suffix[1:].lower() in VIDEO_SUFFIXES
    if is_video or inside(name, image_folder, source, "image").is_dir():
        return f"<p>video {html.escape(name)}</p>"
    data, called = read_image(name, image_folder, source)
    width, height = image_size(data, f"{source}: image {called}", verify=True)
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}
    kind = next((kind for start, kind in kinds.items() if data.startswith(start)), None)
    if kind is None or max(width, height) > _SIDE or len(data) > _BYTES:
        image = open_image(data, f"{source}: image {called}", at_least=(_SIDE, _SIDE))
        image.thumbnail((_SIDE, _SIDE))
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=85)
        data, kind = encoded.getvalue(), "jpeg"
    text = base64.b64encode(data).decode("ascii")
    return f'<img alt="" src="data:image/{kind};base64,{text}">'
