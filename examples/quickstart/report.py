"""Write one HTML page about a quickstart run: loss, accuracy by kind of question, pictures.

The page holds everything it shows (inline SVG, base64 pictures) and runs no script.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]

LOSS_KEY = "lm loss"
CHART_WIDTH, CHART_HEIGHT, CHART_MARGIN = 720, 260, 48
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem;
       color: #1f2328; background: #fff; }
table { border-collapse: collapse; }
td, th { padding: .3rem .9rem; border-bottom: 1px solid #d8dee4; text-align: right; }
td:first-child, th:first-child { text-align: left; }
tr.total { font-weight: 600; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 12px; }
figure { margin: 0; padding: 8px; border: 1px solid #d8dee4; border-left-width: 4px;
         font-size: 13px; }
figure .frame { height: 112px; display: flex; align-items: center; }
figure img { max-height: 112px; max-width: 120px; border: 1px solid #d8dee4; }
.right { border-left-color: #1a7f37; } .wrong { border-left-color: #cf222e; }
.right b { color: #1a7f37; } .wrong b { color: #cf222e; }
svg text { font: 12px system-ui, sans-serif; fill: #59636e; }
"""


def read_jsonl(path: Path, keys: tuple[str, ...]) -> list[Row]:
    """Return the rows of a JSON-lines file; ValueError names the line that lacks one of ``keys``.

    Lines of a log without the first of ``keys`` are another kind of entry, and are left out.
    """
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg}); write it again") from None
        missing = [key for key in keys if key not in row]
        if missing and keys[0] in row:
            raise ValueError(f"{path}:{number}: has no {', '.join(missing)}; write it again")
        if not missing:
            rows.append(row)
    if not rows:
        raise ValueError(f"{path}: has no line with the keys {', '.join(keys)}")
    return rows


def is_right(row: Row) -> bool:
    """Whether the answer is the truth, up to case and surrounding white space."""
    return str(row["answer"]).strip().lower() == str(row["truth"]).strip().lower()


def accuracy_by_kind(rows: list[Row]) -> dict[str, tuple[int, int]]:
    """Return {kind: (right answers, questions)} in the order of first appearance."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        counts[row["kind"]][0] += is_right(row)
        counts[row["kind"]][1] += 1
    return {kind: (right, total) for kind, (right, total) in counts.items()}


def axis_ticks(top: float, number: int = 5) -> list[float]:
    """Return round values from 0 to at least ``top``, about ``number`` steps apart."""
    raw = max(top, 1e-12) / number
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if raw <= power * factor * (1 + 1e-9))
    return [index * step for index in range(math.ceil(top / step - 1e-9) + 1)]


def loss_chart(rows: list[Row]) -> str:
    """Return an SVG of the loss against the iteration, both axes from zero."""
    points = [(float(row["iteration"]), float(row[LOSS_KEY])) for row in rows]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    x_ticks = axis_ticks(max((x for x, _ in points), default=1.0))
    y_ticks = axis_ticks(max((y for _, y in points), default=1.0))
    inner_width, inner_height = CHART_WIDTH - 2 * CHART_MARGIN, CHART_HEIGHT - 2 * CHART_MARGIN

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            CHART_MARGIN + inner_width * x / x_ticks[-1],
            CHART_HEIGHT - CHART_MARGIN - inner_height * y / y_ticks[-1],
        )

    parts = [f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="Loss curve">']
    for tick in y_ticks:
        x, y = place(0, tick)
        parts.append(
            f'<line x1="{x}" x2="{CHART_WIDTH - CHART_MARGIN}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="#d8dee4"/><text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in x_ticks:
        x, y = place(tick, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{tick:g}</text>')
    line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#0969da" stroke-width="1.5"/>')
    parts.append(
        f'<text x="{CHART_MARGIN}" y="{CHART_MARGIN - 16}">loss per supervised token</text>'
        f'<text x="{CHART_WIDTH / 2}" y="{CHART_HEIGHT - 8}" text-anchor="middle">iteration</text>'
    )
    return "\n".join([*parts, "</svg>"])


def accuracy_table(rows: list[Row], blank_rows: list[Row]) -> str:
    """Return the table of exact match by kind, with the pictures and with blank ones."""
    seen, blank = accuracy_by_kind(rows), accuracy_by_kind(blank_rows)
    if (kinds := set(seen)) != set(blank):
        raise ValueError(
            f"--answers has the kinds {sorted(kinds)} but --blank-answers has {sorted(blank)}; "
            "evaluate both on the same questions"
        )
    for counts in (seen, blank):
        right = sum(pair[0] for pair in counts.values())
        counts["all kinds"] = (right, sum(pair[1] for pair in counts.values()))
    lines = [
        "<table><tr><th>kind of question</th><th>questions</th><th>with pictures</th>"
        "<th>pictures blanked</th><th>difference</th></tr>"
    ]
    for kind, (right, total) in seen.items():
        share, blank_share = 100 * right / total, 100 * blank[kind][0] / blank[kind][1]
        lines.append(
            f"<tr{' class=total' if kind == 'all kinds' else ''}><td>{html.escape(kind)}</td>"
            f"<td>{total}</td><td>{share:.1f} %</td><td>{blank_share:.1f} %</td>"
            f"<td>{share - blank_share:+.1f}</td></tr>"
        )
    return "\n".join([*lines, "</table>"])


def choose_examples(rows: list[Row], number: int) -> list[Row]:
    """Return up to ``number`` rows, the kinds taking turns, so that no kind is left out."""
    queues: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        queues[row["kind"]].append(row)
    longest = max(len(queue) for queue in queues.values())
    turns = [queue[i] for i in range(longest) for queue in queues.values() if i < len(queue)]
    return turns[:number]


def example_figure(row: Row, images: Path) -> str:
    """Return one picture with its question, the model's answer and the truth."""
    path = images / row["image"]
    if not path.is_file():
        raise ValueError(f"{path}: no such picture (answer {row['id']}); check --images")
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    kind = "jpeg" if path.suffix.lower() in (".jpg", ".jpeg") else "png"
    answer, truth = html.escape(str(row["answer"])), html.escape(str(row["truth"]))
    verdict = "right" if is_right(row) else "wrong"
    note = "right" if is_right(row) else f"wrong, it is {truth}"
    return (
        f'<figure class="{verdict}"><div class="frame"><img alt="" '
        f'src="data:image/{kind};base64,{data}"></div><figcaption>'
        f"{html.escape(str(row['question']))}<br><b>{answer}</b> ({note})</figcaption></figure>"
    )


def timing_line(rows: list[Row], timings: list[str]) -> str:
    """Return the sentence on iterations, final loss and the seconds given as NAME=SECONDS."""
    parts = [f"{rows[-1]['iteration']} iterations, final loss {rows[-1][LOSS_KEY]:.4f}"]
    for timing in timings:
        name, _, seconds = timing.rpartition("=")
        try:
            parts.append(f"{name} {float(seconds):.1f} s")
        except ValueError:
            raise ValueError(f"--timing {timing}: expected NAME=SECONDS") from None
    return html.escape("; ".join(parts) + ".")


def build_report(args: argparse.Namespace) -> str:
    """Return the page for the files named in ``args``."""
    log = read_jsonl(args.log, (LOSS_KEY, "iteration"))
    keys = ("id", "kind", "image", "question", "answer", "truth")
    answers, blank = read_jsonl(args.answers, keys), read_jsonl(args.blank_answers, keys)
    figures = [example_figure(row, args.images) for row in choose_examples(answers, args.examples)]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>Quickstart report</title><style>{STYLE}</style></head><body>",
            "<h1>Quickstart report</h1>",
            f"<p>{timing_line(log, args.timing)}</p>",
            "<h2>Training loss</h2>",
            loss_chart(log),
            "<h2>Held-out exact match</h2>",
            accuracy_table(answers, blank),
            "<h2>Held-out pictures</h2>",
            '<div class="grid">',
            *figures,
            "</div></body></html>\n",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the HTML file to write")
    parser.add_argument("--log", type=Path, required=True, help="JSON lines of the training run")
    parser.add_argument("--answers", type=Path, required=True, help="JSON lines, one per question")
    parser.add_argument("--blank-answers", type=Path, required=True, help="the same, blanked")
    parser.add_argument("--images", type=Path, required=True, help="folder the images lie under")
    parser.add_argument("--examples", type=int, default=24, help="pictures to show")
    parser.add_argument(
        "--timing", action="append", default=[], metavar="NAME=SECONDS", help="may be repeated"
    )
    args = parser.parse_args(arguments)
    try:
        page = build_report(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    args.output.write_text(page, encoding="utf-8")
    print(f"wrote {args.output} ({len(page) / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
