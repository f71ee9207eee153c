r"""Build a list of entries like MetaCLIP's: words, pairs of words, titles and synsets.

python tools/build_metadata.py --corpus 'wikipedia/*.parquet' --titles views.tsv.gz \
    --wordnet WordNet-3.0/dict --output entries.json
"""

import argparse
from pathlib import Path

from megatron_llava.config.tool_exit import run_tool
from megatron_llava.curation.metadata import MetadataSettings, build_metadata, sources_path


def parse_arguments() -> MetadataSettings:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--corpus",
        nargs="+",
        default=[],
        metavar="FILE",
        help="texts, or patterns with *: .txt (a text a line), .jsonl or .parquet (field text); "
        "the first two also as .gz; read twice",
    )
    add(
        "--titles",
        nargs="+",
        default=[],
        metavar="FILE",
        help="lines of a title, a tab and its views, also as .gz; views of a title are added up",
    )
    add("--wordnet", type=Path, help="WordNet's dict folder, or a text file of lemmas, one a line")
    add("--output", type=Path, required=True, help="entries as a JSON list; counts go beside it")
    add("--min-unigram-count", type=int, default=100, metavar="N", help="default: 100")
    add(
        "--min-bigram-pmi",
        type=float,
        default=30.0,
        metavar="PMI",
        help="log2(n_xy N / (n_x n_y)) with N words; at most log2(N), so 30 takes 1.07e9 words "
        "(default: 30)",
    )
    add("--min-bigram-count", type=int, default=1, metavar="N", help="default: 1")
    add("--min-title-views", type=int, default=70, metavar="N", help="default: 70")
    add(
        "--budget",
        type=int,
        default=500_000,
        metavar="N",
        help="entries in all; beyond it the least viewed titles are cut, then the pairs of the "
        "lowest PMI (default: 500000)",
    )
    add(
        "--keys-in-memory",
        type=int,
        default=4_000_000,
        metavar="N",
        help="distinct n-grams or titles that are counted in memory; more go to files beside the "
        "output, with the same result (default: 4000000)",
    )
    add("--overwrite", action="store_true", help="replace what is there")
    values = vars(parser.parse_args())
    values["corpus"], values["titles"] = tuple(values["corpus"]), tuple(values["titles"])
    return MetadataSettings(**values)


def main() -> None:
    def work() -> str:
        settings = parse_arguments()
        summary = build_metadata(settings)
        return f"{summary}\n{settings.output}, {sources_path(settings.output)}: written"

    run_tool(work)


if __name__ == "__main__":
    main()
