r"""Print the scores that others published of these models and their ablations, the best in bold.

python tools/published_scores.py --list
python tools/published_scores.py --table knowledge --computed-means
python tools/published_scores.py --format csv --output scores.csv
"""

import argparse
from pathlib import Path

from megatron_llava.config.tool_exit import run_tool
from megatron_llava.observe.published_scores import (
    ScoreTable,
    groups,
    read_tables,
    to_csv,
    to_markdown,
    with_means,
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Print the scores that others published of these models and their ablations, "
        "the best in bold. None of them was measured with this code."
    )
    add = parser.add_argument
    add("--list", action="store_true", help="names, sources and titles")
    add("--table", nargs="+", help="tables, or a group of them as one table (default: all)")
    add(
        "--computed-means",
        action="store_true",
        help="the means of the rows beside the published ones",
    )
    add("--format", choices=("markdown", "csv"), default="markdown")
    add("--output", type=Path, help="a file (default: print)")
    return parser.parse_args()


def chosen(arguments: argparse.Namespace) -> list[ScoreTable]:
    """The tables that were asked for.

    Raises:
        ValueError: a name that there is not.
    """
    names, tables = arguments.table, read_tables()
    known = tables | groups(tables)
    for name in names or ():
        if name not in known:
            raise ValueError(f"--table {name}: unknown; use one of {', '.join(known)}")
    found = [known[name] for name in names or (known if arguments.list else tables)]
    return [
        with_means(table) if arguments.computed_means and table.mean else table for table in found
    ]


def work() -> str:
    arguments = parse_arguments()
    tables = chosen(arguments)
    output = arguments.output
    if output is not None and not output.absolute().parent.is_dir():
        raise ValueError(f"--output {output}: there is no such folder")
    if arguments.list:
        text = "\n".join(f"{t.name:<22}{t.source}  {t.title}" for t in tables)
    elif arguments.format == "csv":
        text = to_csv(tables).rstrip("\n")
    else:
        text = "\n".join(map(to_markdown, tables)).rstrip("\n")
    if output is None:
        return text
    output.write_text(text + "\n", encoding="utf-8")
    return f"wrote {output}"


if __name__ == "__main__":
    run_tool(work)
