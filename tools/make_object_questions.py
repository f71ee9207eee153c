r"""Ask of every image about objects that are in it and about as many that are not, as POPE does.

python tools/make_object_questions.py --input coco.jsonl --objects objects \
    --absent popular adversarial --output questions.jsonl
"""

import argparse

from megatron_llava.config.tool_exit import run_tool
from megatron_llava.curation.arguments import add_kept, add_records
from megatron_llava.curation.object_questions import (
    ABSENT,
    MISSING,
    QUESTION,
    ObjectQuestionSettings,
    make_object_questions,
)


def parse_arguments() -> ObjectQuestionSettings:
    parser = argparse.ArgumentParser(
        description="Ask of every image about objects that are in it and about as many that are "
        "not, one record for each question, to train with or to score with evaluate.py."
    )
    add = parser.add_argument
    add_records(parser)
    add(
        "--objects",
        required=True,
        metavar="FIELD",
        help="the key of the list of names, as in meta.objects",
    )
    add(
        "--absent",
        nargs="+",
        choices=ABSENT,
        default=list(ABSENT),
        help="objects that are not there: any, the most frequent, or those that are most often "
        "beside the ones that are there (default: questions of each way)",
    )
    add("--per-image", type=int, default=3, metavar="N", help="of either answer (default: 3)")
    add(
        "--question",
        default=QUESTION,
        help=f"{{object}} is the name with its article (default: {QUESTION})",
    )
    add(
        "--missing",
        choices=MISSING,
        default="error",
        help="records without the field: an error, or drop them (default: error)",
    )
    add_kept(parser, "the choice", written="the questions")
    arguments = vars(parser.parse_args())
    arguments["absent"] = tuple(dict.fromkeys(arguments["absent"]))
    return ObjectQuestionSettings(**arguments)


def main() -> None:
    def work() -> str:
        settings = parse_arguments()
        return f"{settings.output}: {make_object_questions(settings)}"

    run_tool(work)


if __name__ == "__main__":
    main()
