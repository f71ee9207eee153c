"""Command lines of training and the tools over one folder, and what must come of each."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tiny_checkpoints import tiny_llava_next
from tiny_model import png, tiny_config

from megatron_llava.config.model_yaml import model_to_yaml
from megatron_llava.text.known_templates import get_template

ROOT = Path(__file__).parent.parent
TRAIN = "megatron_llava.train"
TOOLS = {path.stem: str(path) for path in sorted((ROOT / "tools").glob("*.py"))}
QUESTION = "<image>\nwhat is in the image?"
# The image bytes of a store, with their number kept: the index still fits, no image is left.
SPOIL = "import pathlib; p = pathlib.Path({!r}); p.write_bytes(b'x' * p.stat().st_size)"


@dataclass
class Case:
    """A command line and what must come of it: words of its one line on stderr, or of stdout."""

    program: str
    arguments: list[str]
    words: list[str] = field(default_factory=list)
    status: int = 2
    environment: dict[str, str] = field(default_factory=dict)


def make_inputs(folder: Path) -> None:
    """A Hugging Face folder, records with images, questions and configuration files."""
    tiny_llava_next(folder / "hf")
    template = get_template("v1").chat_template_jinja()
    (folder / "hf" / "chat_template.jinja").write_text(template)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png((40 + 30 * number, 90), number))
    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "two cats"}]
    records = [
        {"id": str(n), "image": f"{n}.png", "kind": "cats", "score": n, "conversations": turns}
        | {"seen": ["cat", f"toy {n}"]}
        for n in range(4)
    ]
    (folder / "data.json").write_text(json.dumps(records))
    missing = {**records[0], "image": "absent.png"}
    (folder / "missing_image.json").write_text(json.dumps([records[0], missing]))
    (folder / "tiny.yaml").write_text(model_to_yaml(tiny_config()))
    (folder / "bad.yaml").write_text("data:\n  seq_length: [1\n")
    (folder / "few.jsonl").write_text('{"answer": "one"}\n')
    other = [{"event": "start", "iteration": 0}, {"iteration": 1, "lm loss": 2.0}]
    (folder / "others.jsonl").write_text("".join(json.dumps(line) + "\n" for line in other))
    (folder / "type.yaml").write_text("data: {seq_length: long}\n")
    start = f"--pretrained-checkpoint={folder / 'root'}"
    (folder / "sweep.yaml").write_text(
        f"command: '{sys.executable} -m {TRAIN} $flags'\n"
        f"variables: {{flags: {' '.join(train_flags(folder, start))}}}\n"
        f"flags: {{log-file: '{folder}/sweep-$run.jsonl', train-iters: 1}}\n"
        "axes: {seed: [5, 6]}\n"
    )
    (folder / "mixture.yaml").write_text("datasets: [{json_path: data.json, records: 4}]\n")


def train_flags(folder: Path, *more: str) -> list[str]:
    flags = "--device=cpu --train-iters=2 --lr=1e-3 --seq-length=512 --num-workers=0"
    return [*flags.split(), f"--data-path={folder / 'store'}", *more]


def tiny(folder: Path, *more: str) -> list[str]:
    """A run of a tiny model with random weights, which lacks nothing but what `more` spoils."""
    return train_flags(folder, f"--config={folder / 'tiny.yaml'}", *more)


def one_run(folder: Path) -> dict[str, Case]:
    """The programs in the order of the README; later cases read what these have written."""
    root, run = str(folder / "root"), str(folder / "run")
    questions = ["--input", str(folder / "data.json"), "--image-folder", str(folder)]
    template = ["--conversation-template", "v1"]
    preprocess = [*questions, *template, "--tokenizer-model", str(folder / "hf")]
    answers = ["--load", run, *questions, *template]
    convert, evaluate = TOOLS["convert_checkpoint"], TOOLS["evaluate"]
    there = ["--from", "hf", "--to", "megatron", "--load", str(folder / "hf"), "--save", root]
    back = ["--from", "megatron", "--to", "hf", "--load", run, "--save", str(folder / "back")]
    saving = [f"--load={run}", f"--save={run}", "--save-interval=2", f"--log-file={run}.jsonl"]
    start = [f"--pretrained-checkpoint={root}", *saving]
    asked = ["--hf", str(folder / "back"), "--answers", f"{run}-answers.jsonl"]
    scored = ["--answers", f"{run}-answers.jsonl", "--image-folder", str(folder)]
    reported = ["--load", run, *scored]
    inspect = ["--data-path", str(folder / "store"), "--tokenizer-model", str(folder / "hf")]
    made = [*preprocess, "--output-prefix"]
    planned = [*tiny(folder, "--bf16"), "--gpus=2", "--gpu=a100-40gb"]
    checked = [str(folder / "mixture.yaml"), "--data-root", str(folder)]
    chosen = ["--input", str(folder / "data.json"), "--output"]
    beside = ["--lora-rank=4", f"--pretrained-checkpoint={root}", "--save-interval=2"]
    adapters = str(folder / "adapters")
    peft = ["--load", adapters, "--save", str(folder / "peft")]
    merge = ["--load", adapters, "--base", root, "--save", str(folder / "merged")]
    return {
        "check": Case(TOOLS["check_mixture"], checked, ["4 records; 0 of 1 sources"], 0),
        "deduplicate": Case(
            TOOLS["deduplicate"],
            [*chosen, str(folder / "distinct.jsonl"), "--image-folder", str(folder)],
            ["4 records kept, 0 near duplicates removed"],
            0,
        ),
        "balance": Case(
            TOOLS["balance_classes"],
            [*chosen, str(folder / "few-cats.jsonl"), "--by", "kind", "--max-per-class", "3"],
            ['"cats": 3 of 4 records'],
            0,
        ),
        "top": Case(
            TOOLS["select_top"],
            [*chosen, str(folder / "best-cats.jsonl"), "--by", "score", "--count", "2"],
            ["2 of 4 records: values from 2 to 3"],
            0,
        ),
        "objects": Case(
            TOOLS["make_object_questions"],
            [*chosen, str(folder / "objects.jsonl"), "--objects", "seen", "--absent", "popular"],
            ["16 questions about 4 records"],
            0,
        ),
        "task": Case(
            TOOLS["write_lmms_eval_task"],
            [*chosen, str(folder / "cats"), "--image-folder", str(folder)],
            ["4 questions in"],
            0,
        ),
        "scores": Case(
            TOOLS["published_scores"],
            ["--table", "encoders", "--computed-means"],
            ["| **66.4** | **66.44** | **69.4** |"],
            0,
        ),
        "import": Case(convert, there, ["wrote"], 0),
        "preprocess": Case(
            TOOLS["preprocess_data"], [*made, str(folder / "store")], ["4 samples"], 0
        ),
        "plan": Case(
            TOOLS["plan"],
            [*planned, "--gpus=2", "--gpu=a100-40gb"],
            ["fits", "packs of", "2 steps of 8 samples", "2.00 passes"],
            0,
        ),
        "preprocess another": Case(
            TOOLS["preprocess_data"], [*made, str(folder / "spoilt")], ["4 samples"], 0
        ),
        "spoil it": Case("code", [SPOIL.format(str(folder / "spoilt_images.bin"))], [], 0),
        "inspect": Case(TOOLS["inspect_data"], [*inspect, "--index", "3"], ["two cats"], 0),
        "train": Case(TRAIN, train_flags(folder, *start), [], 0),
        "sweep": Case(
            TOOLS["sweep"],
            ["--sweep", str(folder / "sweep.yaml"), "--dry-run"],
            ["6: ", f"--log-file={folder}/sweep-6.jsonl --train-iters=1 --seed=6"],
            0,
        ),
        "card": Case(
            TOOLS["write_model_card"],
            ["--name", "A", "--stages", run, "--output", f"{run}-card.md"],
            ["wrote "],
            0,
        ),
        "evaluate": Case(
            evaluate, [*answers, "--output", f"{run}-answers.jsonl"], ["4 questions", "overall"], 0
        ),
        "report": Case(
            TOOLS["report"],
            [*reported, "--data-path", str(folder / "store"), "--output", f"{run}.html"],
            [f"wrote {run}.html"],
            0,
        ),
        "export": Case(convert, back, ["wrote"], 0),
        "compare": Case(TOOLS["compare_hf"], [*answers, *asked], ["answers: 4 of 4"], 0),
        "adapt": Case(TRAIN, train_flags(folder, *beside, f"--save={adapters}"), [], 0),
        "merge": Case(TOOLS["lora"], ["merge", *merge], ["wrote"], 0),
        "export adapters": Case(TOOLS["lora"], ["export", *peft], ["wrote"], 0),
        "convert adapters": Case(
            convert,
            [*back[:4], "--load", adapters, "--base", root, "--save", str(folder / "adapted")],
            ["wrote"],
            0,
        ),
        "evaluate adapters": Case(
            evaluate,
            [*answers, "--load", adapters, "--base", root, "--scorer", "relaxed"]
            + ["--grids-by-kind", "--is-detailed", "operator:truth", "--vision-on-cpu"],
            ["4 questions", "% relaxed accuracy"],
            0,
        ),
    }


def train_errors(folder: Path) -> dict[str, Case]:
    def error(arguments: list[str], *words: str, **environment: str) -> Case:
        return Case(TRAIN, arguments, [f"{TRAIN}: error: ", *words], 2, environment)

    root, absent = folder / "root", folder / "absent"
    pretrained = f"--pretrained-checkpoint={root}"
    return {
        "nothing": error([], "--train-iters is required"),
        "unknown flag": error(["--seq-lenght=8"], "unknown flag --seq-lenght", "--seq-length?"),
        "bad yaml": error([f"--config={folder / 'bad.yaml'}"], f"{folder / 'bad.yaml'}", "line"),
        "type in yaml": error([f"--config={folder / 'type.yaml'}"], "type.yaml", "seq_length"),
        "no model": error(train_flags(folder), "--num-layers is not known"),
        "heads": error(
            tiny(folder, "--tensor-model-parallel-size=3"),
            "--num-attention-heads 4 cannot be divided by --tensor-model-parallel-size 3",
            WORLD_SIZE="3",
        ),
        "ranks": error(tiny(folder, "--pipeline-model-parallel-size=2"), "1 ranks cannot"),
        "store": error(tiny(folder, f"--data-path={absent}"), f"{absent}"),
        "valid store": error(
            tiny(folder, f"--valid-data-path={absent}", "--eval-interval=1"), f"{absent}"
        ),
        "load": error(
            tiny(folder, f"--load={absent}", "--exit-on-missing-checkpoint"),
            f"--load {absent} holds no checkpoint",
        ),
        "ckpt step": error(tiny(folder, f"--load={root}", "--ckpt-step=9"), "--ckpt-step 9"),
        "pretrained": error(tiny(folder, f"--pretrained-checkpoint={absent}"), f"{absent} holds"),
        "hf as pretrained": error(
            tiny(folder, f"--pretrained-checkpoint={folder / 'hf'}"), "read with --load-hf"
        ),
        "hf": error(tiny(folder, f"--load-hf={absent}"), f"{absent}: no such folder"),
        "other shape": error(
            train_flags(folder, pretrained, "--num-layers=9"), "--num-layers 9 contradicts"
        ),
        "fp8": error(tiny(folder, "--fp8-format=hybrid"), "--fp8-format hybrid needs a GPU"),
        "transformer engine": error(
            tiny(folder, "--transformer-impl=transformer_engine"), "--transformer-impl"
        ),
        "sample too long": error(tiny(folder, "--seq-length=20"), "--seq-length"),
        "beyond positions": error(
            tiny(folder, "--max-position-embeddings=30"), "--max-position-embeddings 30"
        ),
        "log file": error(tiny(folder, f"--log-file={folder}"), f"--log-file {folder}"),
        "loss function": error(
            tiny(folder, "--loss-function=nowhere:f"),
            "--loss-function nowhere:f: expected MODULE:FUNCTION",
            WORLD_SIZE="2",  # whose other rank never comes
        ),
        "other vocabulary": error(tiny(folder, "--vocab-size=32"), "--vocab-size 32"),
        "spoilt image": error(
            train_flags(folder, pretrained, f"--data-path={folder / 'spoilt'}"),
            f"{folder / 'spoilt'}",
            "cannot read an image",
        ),
        "save": error(
            train_flags(folder, pretrained, f"--save={folder / 'data.json'}", "--save-interval=1"),
            f"--save {folder / 'data.json'}",
        ),
    }


def tool_errors(folder: Path) -> dict[str, Case]:
    absent, root, hf = str(folder / "absent"), str(folder / "root"), str(folder / "hf")
    images = ["--image-folder", str(folder)]
    data, v1 = ["--input", str(folder / "data.json")], ["--conversation-template", "v1"]
    missing = ["--input", str(folder / "missing_image.json")]
    named = ["missing_image.json: record 1 (id=0)", "absent.png"]

    def preprocess(*arguments: str, words: list[str]) -> Case:
        output = ["--output-prefix", str(folder / "other")]
        model = ["--tokenizer-model", hf]
        return Case(TOOLS["preprocess_data"], [*model, *output, *images, *arguments], words, 1)

    def inspect(*arguments: str, words: list[str]) -> Case:
        store = ["--data-path", str(folder / "store"), "--tokenizer-model", hf]
        return Case(TOOLS["inspect_data"], [*store, *arguments], words, 1)

    def convert(*arguments: str, words: list[str]) -> Case:
        return Case(TOOLS["convert_checkpoint"], list(arguments), words)

    def evaluate(*arguments: str, words: list[str]) -> Case:
        return Case(TOOLS["evaluate"], ["--load", root, *images, *arguments], words)

    def compare(*arguments: str, words: list[str]) -> Case:
        given = ["--load", root, *data, *images, *v1, "--hf", hf]
        return Case(TOOLS["compare_hf"], [*given, *arguments], words)

    def choose(tool: str, *arguments: str, words: list[str]) -> Case:
        given = [*data, "--output", str(folder / "chosen.jsonl")]
        return Case(TOOLS[tool], [*given, *arguments], words, 1)

    importing = ("--from", "hf", "--to", "megatron")
    exporting = ("--from", "megatron", "--to", "hf")

    def lora(command: str, load: str, *arguments: str, words: list[str]) -> Case:
        given = [command, "--load", load, "--save", f"{absent}-too", *arguments]
        return Case(TOOLS["lora"], given, ["lora.py: error: ", *words])

    adapters, base = str(folder / "adapters"), ["--base", root]
    unknown = ["--conversation-template", "vicuna"]
    few = str(folder / "few.jsonl")
    output = ["--output", str(folder / "made.json")]
    balanced = ["sample", *data, "--output", str(folder / "made.jsonl"), "--entries"]
    return {
        "entries: no source": Case(
            TOOLS["build_metadata"], output, ["--corpus, --titles and --wordnet"], 1
        ),
        "entries: corpus": Case(
            TOOLS["build_metadata"], [*output, "--corpus", absent], [f"--corpus {absent}"], 1
        ),
        "balance: entries": Case(
            TOOLS["balance_captions"], [*balanced, absent], [f"--entries {absent}"], 1
        ),
        "balance: shard": Case(
            TOOLS["balance_captions"], [*balanced, absent, "--shard=1/2"], ["needs --counts"], 1
        ),
        "plan: samples": Case(
            TOOLS["plan"],
            ["--gpus", "1", "--samples", "-5"],
            ["--samples -5: give 1 or more"],
        ),
        "plan: memory": Case(TOOLS["plan"], ["--gpus", "1"], ["--gpu-memory is not known"]),
        "preprocess: template": preprocess(*data, *unknown, words=["vicuna: unknown; use one of"]),
        "preprocess: image": preprocess(*missing, *v1, words=named),
        "preprocess: input": preprocess("--input", f"{absent}.json", words=["absent.json"]),
        "preprocess: tokenizer": preprocess(
            *data, "--tokenizer-model", absent, words=[f"--tokenizer-model {absent}"]
        ),
        "check: file": Case(TOOLS["check_mixture"], [f"{absent}.yaml"], ["absent.yaml"], 1),
        "deduplicate: image": choose("deduplicate", *missing, *images, words=named),
        "deduplicate: folder": choose("deduplicate", words=["0.png; give --image-folder"]),
        "deduplicate: similarity": choose(
            "deduplicate", "--text-similarity", "2", words=["--text-similarity 2.0: expected"]
        ),
        "balance: field": choose(
            "balance_classes", "--by", "colour", "--max-per-class", "2", words=["has no colour"]
        ),
        "top: field": choose(
            "select_top", "--by", "quality", "--count", "2", words=["has no quality"]
        ),
        "objects: field": choose("make_object_questions", "--objects", "x", words=["has no x"]),
        "sweep: file": Case(TOOLS["sweep"], ["--sweep", absent], [f"{absent}"], 1),
        "sweep: run": Case(
            TOOLS["sweep"],
            ["--sweep", str(folder / "sweep.yaml"), "--run", "7"],
            ["--run 7: there is no such run; use 5, 6"],
            1,
        ),
        "scores: table": Case(
            TOOLS["published_scores"], ["--table", "x"], ["--table x: unknown; use one of"], 1
        ),
        "card: folder": Case(
            TOOLS["write_model_card"],
            ["--name", "A", "--stages", absent, "--output", f"{absent}.md"],
            ["absent/run.yaml: no such file"],
            1,
        ),
        **report_errors(folder),
        "inspect: store": inspect("--data-path", absent, words=[absent]),
        "inspect: index": inspect("--index", "4", words=["4"]),
        "inspect: tokenizer": inspect("--tokenizer-model", absent, words=["--tokenizer-model"]),
        "import: folder": convert(
            *importing, "--load", absent, "--save", few + "x", words=[absent]
        ),
        "import: exists": convert(*importing, "--load", hf, "--save", root, words=[root]),
        "export: folder": convert(
            *exporting, "--load", absent, "--save", few + "x", words=[absent]
        ),
        "export: step": convert(
            *exporting, "--load", root, "--save", few + "x", "--ckpt-step", "7", words=["0000007"]
        ),
        "export: adapters": convert(
            *exporting, "--load", adapters, "--save", few + "x", words=["tools/lora.py merge"]
        ),
        "evaluate: adapters": evaluate(
            *data, *v1, "--load", adapters, words=[adapters, "tools/lora.py merge"]
        ),
        "evaluate: base": evaluate(
            *data, *v1, "--load", adapters, "--base", absent, words=[absent, "no checkpoint"]
        ),
        "lora: no adapters": lora("export", root, words=[root, "holds no adapters"]),
        "lora: step": lora("export", adapters, "--ckpt-step", "7", words=["0000007"]),
        "lora: base": lora("merge", adapters, "--base", adapters, words=["without the weights"]),
        "lora: folder": lora("import", absent, *base, words=[f"{absent}/adapter_config.json"]),
        "evaluate: detail": evaluate(
            *(*data, *v1, "--is-detailed", "a:b"), words=["--is-detailed a:b", "--grids-by-kind"]
        ),
        "evaluate: load": evaluate(*data, *v1, "--load", absent, words=[f"--load {absent}"]),
        "evaluate: step": evaluate(*data, *v1, "--ckpt-step", "7", words=["0000007"]),
        "evaluate: template": evaluate(*data, *unknown, words=["vicuna: unknown; use one of"]),
        "evaluate: image": evaluate(*missing, *v1, words=named),
        "evaluate: input": evaluate("--input", f"{absent}.json", *v1, words=["absent.json"]),
        "evaluate: output": evaluate(
            *data,
            *v1,
            "--output",
            f"{folder}/data.json/a.jsonl",
            words=[f"--output {folder}/data.json/a.jsonl: no folder"],
        ),
        "evaluate: truths": evaluate(
            *data, *v1, "--scorer", "pope", words=["data.json: record 0", "neither yes nor no"]
        ),
        "evaluate: rows": evaluate(*data, *v1, "--rows-per-pack", "0", words=["--rows-per-pack 0"]),
        "evaluate: output folder": evaluate(
            *data, *v1, "--output", str(folder), words=[f"--output {folder} is a folder"]
        ),
        "evaluate: draws": evaluate(*data, *v1, "--top-p", "0.9", words=["--temperature 0 draws"]),
        "evaluate: 4 bits": evaluate(
            *(*data, *v1, "--bnb-4bit-quant-type", "fp4"), words=["fp4 is about --load-in-4bit"]
        ),
        "evaluate: tokens": evaluate(*data, *v1, "--max-new-tokens", "0", words=["--max-new-tok"]),
        "compare: answers": compare("--answers", absent, words=[absent]),
        "compare: count": compare("--answers", few, words=["1 answers", "4"]),
        "compare: folder": compare(
            "--answers", f"{folder / 'run'}-answers.jsonl", "--hf", absent, words=[absent]
        ),
    }


def report_errors(folder: Path) -> dict[str, Case]:
    absent, few = str(folder / "absent"), str(folder / "few.jsonl")

    def report(*arguments: str, words: list[str]) -> Case:
        return Case(TOOLS["report"], ["--output", f"{absent}.html", *arguments], words, 1)

    run, others = str(folder / "run"), str(folder / "others.jsonl")
    given, answers = ("--log-file", f"{run}.jsonl"), ("--answers", f"{run}-answers.jsonl")
    return {
        "report: nothing": report(words=["a report needs --load", "--log-file, or both"]),
        "report: folder": report("--load", absent, words=["absent/run.yaml: no such file"]),
        "report: other log": report(
            "--load", run, "--log-file", others, words=[f"{others}: the log of another run"]
        ),
        "report: no log": report("--log-file", few, words=["few.jsonl: has no line of a training"]),
        "report: store": report(*given, "--load", run, "--data-path", absent, words=[absent]),
        "report: views": report(*given, "--data-path", absent, words=["--data-path needs --load"]),
        "report: answers": report(*given, "--answers", few, words=["few.jsonl:1: has no id, kind"]),
        "report: pictures": report(*given, *answers, words=["0.png; give --image-folder"]),
        "report: blank": report(*given, "--blank-answers", few, words=["needs --answers"]),
        "report: exists": report(*given, "--output", f"{run}.html", words=["give --overwrite"]),
    }


def printed_flags(folder: Path) -> list[str]:
    return tiny(folder, f"--pretrained-checkpoint={folder / 'root'}", "--lr=3e-5")


def usages(folder: Path) -> dict[str, Case]:
    made = {"print": Case(TRAIN, [*printed_flags(folder), "--print-config"], [], 0)}
    valid = {case.program: case.arguments for case in one_run(folder).values()}
    parts = ["--language-model", "a", "--vision-tower", "b", "--save", "c"]
    valid[TOOLS["merge_checkpoint"]] = parts
    valid[TOOLS["lora"]] = ["merge", "--load", "a", "--base", "b", "--save", "c"]
    valid[TOOLS["plan"]] = ["--gpus", "1"]
    valid[TOOLS["merge_data"]] = ["--output-prefix", "a", "--shards", "b"]
    valid[TOOLS["build_metadata"]] = ["--output", "a"]
    captions = ["--input", "a", "--entries", "b", "--counts", "c"]
    valid[TOOLS["balance_captions"]] = ["count", *captions]
    for name, path in TOOLS.items():
        made[f"{name} --help"] = Case(path, ["--help"], [], 0)
        # What the run does not use compares two layouts; their common flags come last.
        arguments = valid.get(path, ["--first", "1", "--second", "1", "--", "--lr", "1"])
        made[f"{name} --inptu"] = Case(path, ["--inptu", *arguments])
    return made


def all_cases(folder: Path) -> dict[str, Case]:
    return {**one_run(folder), **train_errors(folder), **tool_errors(folder), **usages(folder)}
