"""Subcommands, exit codes, and errors as one line on stderr: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from hash3d_cuda.torchrun import world_size

COMMANDS = {
    "generate": "a name or a picture to a 3D object",
    "compare": "the same object without and with the cache: time, hit rate, quality",
    "reproduce": "the paper's tables and figures, measured anew",
    "tune": "the fastest cache settings that keep a quality bound, found by short runs",
    "bench": "benchmarks of the table and the hook",
    "plan": "predict hit rate, memory and largest speed-up before a run",
    "info": "version, devices, build; what the shipped prior knows; example pictures",
    "prepare-data": "render the views that the shipped prior is trained on",
    "train-prior": "train the shipped prior",
}
ALONE = ("compare", "reproduce", "tune")  # several processes of torchrun would write over one another
FORWARDED = {"prepare-data": "hash3d_cuda.prior.prepare", "train-prior": "hash3d_cuda.prior.train"}
EXAMPLES = """examples:
  hash3d generate "teddy bear" --out bear
  hash3d compare "teddy bear" --out bear-compared
  hash3d info --objects
"""


class UsageError(Exception):
    """A wrong option or value: exit code 2."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"hash3d: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


class CommandParser(Parser):
    """That of ``hash3d``, whose errors its caller tells: they may be those of a line in a file."""

    subcommands: dict[str, CommandParser]

    def command(self, name: str) -> CommandParser:
        """The parser of a subcommand."""
        return self.subcommands[name]

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser(command: str | None = None) -> CommandParser:
    """The whole command line; only ``command``'s own options are filled in, which keeps ``--help`` fast."""
    parser = CommandParser(
        prog="hash3d",
        description="3D from a 2D diffusion prior, with a pose-aware feature cache.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hash3d {version()}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=CommandParser)
    parser.subcommands = commands.choices
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            add_help=name not in FORWARDED,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name not in FORWARDED:
            sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if name == command:
            importlib.import_module(f"hash3d_cuda.cli.{name}").add_options(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with own_warnings():
            return dispatch(arguments)
    except SystemExit as end:  # argparse: 0 after --help, 2 after an error it has printed
        return end.code if isinstance(end.code, int) else 1
    except BrokenPipeError:  # e.g. `hash3d info --objects | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("hash3d: error: interrupted", file=sys.stderr)
        return 1
    except BaseException as error:
        if debug:
            raise
        print(f"hash3d: error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


@contextlib.contextmanager
def own_warnings() -> Iterator[None]:
    """While entered, this package's warnings are one line; others look as always."""
    before = warnings.formatwarning

    def one(message: Any, category: type, filename: str, lineno: int, line: str | None = None) -> str:
        if "hash3d_cuda" not in filename:
            return before(message, category, filename, lineno, line)
        return f"hash3d: warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = one
    try:
        yield
    finally:
        warnings.formatwarning = before


def dispatch(arguments: list[str]) -> int:
    """Runs the named subcommand."""
    name = next((word for word in arguments if not word.startswith("-")), None)
    if name in FORWARDED:
        rest = [word for word in arguments[arguments.index(name) + 1 :] if word != "--debug"]
        return importlib.import_module(FORWARDED[name]).main(rest) or 0
    options = build_parser(name if name in COMMANDS else None).parse_args(arguments)
    if options.command in ALONE and world_size() > 1:
        remedy = "start it without torchrun; generate is what shares work"
        raise UsageError(f"{options.command}: expected one process, got {world_size()} that write one folder; {remedy}")
    return importlib.import_module(f"hash3d_cuda.cli.{options.command}").run(options)


def one_line(error: BaseException) -> str:
    """An exception as one line; the kinds that only a defect raises are named as such."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("hash3d_cuda"):
        extra = "ray" if error.name == "ray" else "generate"
        return f"the package {error.name!r} is missing; install it with: pip install 'hash3d-cuda[{extra}]'"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {str(error.filename)!r}"
    text = " ".join(str(error).split()) or type(error).__name__
    expected = (ValueError, OSError, RuntimeError, UsageError, MemoryError, TypeError)
    return text if isinstance(error, expected) else f"{type(error).__name__}: {text} (--debug shows the traceback)"


def version() -> str:
    """The installed version, without importing the package's engine."""
    from importlib import metadata

    try:
        return metadata.version("hash3d-cuda")
    except metadata.PackageNotFoundError:
        return "(not installed)"
