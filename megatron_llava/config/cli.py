"""The command line: a parser made from the groups of RunConfig."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from megatron_llava.config.exit_codes import RANK_LOST, STOPPED, USER_ERROR
from megatron_llava.config.fields import FieldSpec
from megatron_llava.config.not_offered import NOT_OFFERED
from megatron_llava.config.original_flags import ORIGINAL_FLAGS
from megatron_llava.config.run import RunConfig, all_fields, group_classes
from megatron_llava.config.yaml_file import (
    close_matches,
    field_values,
    read_yaml_mapping,
    write_yaml,
)

_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "list": "A,B,...", "numbers": "X,Y,..."}
_EPILOG = (
    "A --config file sets any of these by name (dashes or underscores, flat or nested by section); "
    "flags win over it. --no-FLAG turns off a FLAG that the file turned on. "
    f"Exit codes: 0 the run is complete; {USER_ERROR} an error that one line names; {RANK_LOST} "
    f"another rank was lost; {STOPPED} saved and stopped by SIGTERM: run the same command again."
)


def exit_with_error(message: str, prog: str = "megatron_llava", code: int = USER_ERROR) -> NoReturn:
    """Print an error as one line on stderr and exit, with the code of a user error by default."""
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


class _OneLineParser(argparse.ArgumentParser):
    """ArgumentParser whose errors are one line: the usage of a hundred flags helps nobody."""

    def error(self, message: str) -> NoReturn:
        exit_with_error(message, self.prog)


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser. A flag that is not given leaves no attribute in the namespace."""
    parser = _OneLineParser(
        prog=prog,
        description="Train a LLaVA-NeXT or LLaVA-OneVision model on Megatron-core.",
        epilog=_EPILOG,
        usage="%(prog)s [--config FILE] [FLAGS]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="Print the settings as YAML, each with where it came from, and exit",
    )
    for group, cls in group_classes().items():
        assert cls.__doc__ is not None
        section = parser.add_argument_group(group, cls.__doc__.split("\n")[0])
        for spec in all_fields().values():
            if spec.group == group:
                _add_field(section, spec)
        if group == "precision":
            section.add_argument(
                "--fp8-hybrid", action="store_true", help="Deprecated: --fp8-format hybrid"
            )
    return parser


def _add_field(section: argparse._ArgumentGroup, spec: FieldSpec) -> None:
    help_text = f"{spec.info.help} (default: {spec.default_text})".replace("%", "%%")
    if spec.kind != "bool":
        section.add_argument(
            spec.option,
            dest=spec.name,
            type=_text_converter(spec),
            metavar="{" + ",".join(spec.choices) + "}" if spec.choices else _METAVARS[spec.kind],
            help=help_text,
        )
    elif spec.default is False:
        section.add_argument(spec.option, dest=spec.name, action="store_true", help=help_text)
        section.add_argument(
            spec.negation, dest=spec.name, action="store_false", help=argparse.SUPPRESS
        )
    else:
        section.add_argument(
            spec.option, dest=spec.name, action=argparse.BooleanOptionalAction, help=help_text
        )


def _text_converter(spec: FieldSpec) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return spec.convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> RunConfig:
    """The settings that a command line gives: defaults, then ``--config``, then flags.

    Args:
        argv: the arguments without the program's name; ``sys.argv[1:]`` where None.
        prog: the program's name in messages; taken from ``sys.argv[0]`` where None.

    Exits with status 2 and one line on stderr on a user error, and with status 0 after
    ``--help`` and ``--print-config``. Combinations are left to ``validate``.
    """
    parser = build_parser(prog)
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_unknown_argument(parser, unknown))
    given: dict[str, Any] = vars(namespace)
    config_file = given.pop("config", None)
    print_config = given.pop("print_config", False)
    try:
        _resolve_fp8_hybrid(given)
        config = RunConfig(config_file=config_file)
        if config_file is not None:
            mapping = read_yaml_mapping(config_file)
            config = config.with_values(field_values(mapping, config_file), "file")
    except ValueError as error:
        parser.error(str(error))
    config = config.with_values(given, "flag").with_adapter_defaults()
    if print_config:
        print(config_to_yaml(config), end="")
        raise SystemExit(0)
    return config


def config_to_yaml(config: RunConfig) -> str:
    """Every setting as YAML with its source as a comment; ``--config`` reads the same back.

    A field that waits for a checkpoint is null with its default in the comment: written out, the
    default would read back as the user's wish and hide the checkpoint's value.
    """

    def waits_for_checkpoint(spec: FieldSpec) -> bool:
        is_default = spec.name not in config.sources and config.get(spec.name) == spec.default
        return is_default and spec.info.from_checkpoint != "no"

    def comment(spec: FieldSpec) -> str:
        if waits_for_checkpoint(spec):
            return f"default: {spec.default_text}"
        return config.sources.get(spec.name, "default")

    return write_yaml(
        choose=lambda spec: True,
        value=lambda spec: None if waits_for_checkpoint(spec) else config.get(spec.name),
        comment=comment,
    )


def _unknown_argument(parser: argparse.ArgumentParser, unknown: list[str]) -> str:
    """The message on arguments that no flag takes, about the first of them."""
    flags = [argument for argument in unknown if argument.startswith("-")]
    if not flags:
        return f"unexpected argument {unknown[0]}: every setting is a flag"
    name = flags[0].split("=")[0]
    if name in NOT_OFFERED:
        return f"{name} is not offered: {NOT_OFFERED[name]}"
    known = [spec.option for spec in all_fields().values()] + ["--config", "--print-config"]
    dashed = name.replace("_", "-")
    if dashed in ORIGINAL_FLAGS:
        return f"{name} is a flag of the original LLaVA code: give {ORIGINAL_FLAGS[dashed]}"
    if dashed in known and dashed != name:
        return f"unknown flag {name}: flags are written with dashes, {dashed}"
    return f"unknown flag {name}{close_matches(name, known)}"


def _resolve_fp8_hybrid(given: dict[str, Any]) -> None:
    """Turn the deprecated ``--fp8-hybrid`` into ``--fp8-format hybrid``."""
    if not given.pop("fp8_hybrid", False):
        return
    if given.get("fp8_format", "hybrid") != "hybrid":
        raise ValueError(f"--fp8-hybrid contradicts --fp8-format {given['fp8_format']}: give one")
    given["fp8_format"] = "hybrid"
    print("--fp8-hybrid is deprecated: use --fp8-format hybrid", file=sys.stderr)
