"""The command line: `sscl COMMAND [CONFIG] [RUN] [TILES] [KEY=VALUE ...]`; a shipped config goes by its name.

Nothing heavy is imported before a command is chosen.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import inspect
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sscl.cli.arguments import CONFIG, Sorted, check_tiles, sort_words
from sscl.cli.table import COMMANDS, OPTIONS, Command, overview
from sscl.cli.terminal import columns, folded, printing
from sscl.memory import check_room, is_short, shortage

if TYPE_CHECKING:
    from sscl.config import Section


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0, or what the command returns: 1 for what --strict forbids, 3 for files or slides that could not be read; 2 for bad
    input, after one line on standard error for each fault; 130 after Ctrl-C; 141 if the reader of the output is gone.
    A traceback means a bug in sscl.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged metadata; damaged pixels are refused
    with printing() as out:
        code = _code_of(words)
        sys.stdout.flush()
        if isinstance(out.failure, BrokenPipeError):  # as when piped into `head`
            return code or 141
        if out.failure is not None:
            return code or _fail(f"standard output: cannot be written ({out.failure.strerror}); the results are kept")
        return code


def _code_of(words: Sequence[str]) -> int:
    """Run a command and return its exit code; what it raises becomes a line."""
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        from sscl.children import INTERRUPTED, is_child

        if not is_child():  # or its parent says how to go on
            name = _named(words)
            _fail("interrupted" if name is None else f"interrupted; {COMMANDS[name].interrupted}")
        return INTERRUPTED
    except Exception as error:
        line = _in_one_line(error, words)
        if line is None:
            raise
        return _fail(line)


def _in_one_line(error: Exception, words: Sequence[str]) -> str | None:
    """Return what an error means in the command that these words call; None: it looks like a bug in sscl."""
    command = _named(words) or ""
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "sscl").split(".")[0] != "sscl":
        return f"the package {error.name} is missing; install sscl again, sscl doctor says what else is missing"
    if is_short(error):
        return shortage(error, command)
    if isinstance(error, OSError):  # sscl's have a sentence; the system's a file: not allowed, missing, disk full
        if not error.filename and _working_folder_is_gone():
            return "the working folder was deleted; change to one that is there (cd)"
        unnamed = f"a file could not be read or written ({error.strerror})" if error.errno else str(error)
        return f"{error.filename}: {error.strerror}" if error.filename else unnamed
    if isinstance(error, RuntimeError):  # of torch and its libraries
        from sscl.cli.failures import in_one_line

        return in_one_line(error, command)
    return None


def _working_folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _dispatch(words: Sequence[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "--help-all"):
        print(overview())
        return 0
    if words[0] == "--version":
        from sscl import __version__

        print(f"sscl {__version__}")
        return 0
    group = {key: command for key, command in COMMANDS.items() if key.split()[0] == words[0] and key != words[0]}
    if group and words[1:] and words[1] in ("-h", "--help", "--help-all"):
        print(overview(group))
        return 0
    name = _named(words)
    if name is None:
        raise ValueError(_no_command(words))
    return _run(name, words[len(name.split()) :])


def _named(words: Sequence[str]) -> str | None:
    """Return the command that the first words name, None where there is no such command."""
    return next((name for n in (2, 1) if (name := " ".join(words[:n])) in COMMANDS), None)


def _no_command(words: Sequence[str]) -> str:
    """Return the line that says which command was meant."""
    from sscl.words import nearest

    group = [name for name in COMMANDS if name.split()[0] == words[0]]
    given = words[0]
    if group:  # the first word of two
        given = " ".join(word for word in words[:2] if not word.startswith("-"))
        # Of the group the second word tells the names apart.
        return f"no command {given!r}; {nearest(given, group, cutoff=0.8)}"
    return f"no command {given!r}; {nearest(given, COMMANDS, cutoff=0.6)}"


@dataclass(frozen=True)
class Given:
    """What the words after a command say."""

    kind: type[Section]  # of its configuration
    found: Sorted
    flags: Mapping[str, bool]
    help: Literal["", "short", "all"] = ""

    def load(self) -> Section:
        """Return the configuration."""
        from sscl.config import load_config

        resume = self.flags.get("resume", False)
        if resume and self.flags.get("overwrite"):
            raise ValueError("--resume and --overwrite exclude each other")
        return load_config(self.kind, self.found.config, overrides=self.found.overrides, resume=resume)


def parse(name: str, words: Sequence[str]) -> Given:
    """Return what the words after a command say.

    Raises:
        ValueError: an unknown option, or a word that the command does not take.
    """
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"sscl {name}", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--help-all", action="store_true")
    for flag in command.flags:
        parser.add_argument(f"--{flag}", action="store_true")
    for option, _ in command.options:
        parser.add_argument(f"--{option}")
    parser.add_argument("words", nargs="*")
    try:
        given, unknown = parser.parse_known_intermixed_args(list(words))
    except argparse.ArgumentError as error:
        raise ValueError(str(error).removeprefix("argument ")) from None

    from sscl import config as configs

    kind = getattr(configs, command.config)
    flags = {flag: getattr(given, flag) for flag in command.flags}
    for word in [word for word in given.words if word.partition("=")[0] in flags]:  # overwrite=true
        flag, _, value = word.partition("=")
        if value not in ("true", "false"):
            raise ValueError(f"{flag}: must be true or false, or --{flag} for true, got {value!r}")
        flags[flag] = value == "true"
        given.words.remove(word)
    if given.help or given.help_all:
        return Given(kind, Sorted(None, ()), flags, help="all" if given.help_all else "short")
    if unknown:
        allowed = ", ".join(f"--{option}" for option in _options(command))
        raise ValueError(f"{unknown[0]}: unknown option; allowed are {allowed} and KEY=VALUE")
    options = {key: value for option, key in command.options if (value := getattr(given, option)) is not None}
    found = sort_words(
        kind,
        [*given.words, *(f"{key}={value}" for key, value in options.items())],
        takes=command.takes,
        config=given.config,
        resume=flags.get("resume", False),
    )
    return Given(kind, found, flags)


def _run(name: str, words: Sequence[str]) -> int:
    command, given = COMMANDS[name], parse(name, words)
    if given.help:
        print(_help(name, given.kind, every=given.help == "all"))
        return 0
    check_tiles(given.kind, given.found, command.takes)
    config = given.load()
    module, function = command.function.split(":")
    gc.disable()  # imports make a million objects and hardly any garbage: looking for it is a seventh of the start
    try:
        command_module = importlib.import_module(module if "." in module else f"sscl.commands.{module}")
    finally:
        gc.enable()
    if "torch" in sys.modules:
        check_room()
    code: int | None = getattr(command_module, function)(config, **given.flags)
    return code or 0


def _help(name: str, kind: type[Section], *, every: bool) -> str:
    """Return the text of `sscl COMMAND --help`, or of --help-all, as wide as the terminal; else of 80 columns."""
    from sscl.config.help import columns as two_columns
    from sscl.config.help import common_keys, help_text, short_help, wrapped
    from sscl.config.sections import keys as all_keys

    command, width = COMMANDS[name], min(shutil.get_terminal_size().columns, 120)
    of_options = {option: (OPTIONS[option][0], OPTIONS[option][1].format(name=name)) for option in _options(command)}
    options = {f"--{option} {value}".rstrip(): does for option, (value, does) in of_options.items()}
    named = [f"{word.name}{' ...' if word.many else ''}" for word in command.takes]
    keys = ["--config NAME" if word is CONFIG else f"{word.key}={word.name}" for word in command.takes]
    rows = {word: f"{of.about} ({key})" for word, of, key in zip(named, command.takes, keys, strict=True)}
    own = [option for option in options if option.split()[0] not in ("--config", "--checkpoint")]
    words = [*(f"[{word}]" for word in [*named, *own]), "[KEY=VALUE ...]"]
    whole = [word.replace(" ", "\N{NO-BREAK SPACE}") for word in words]  # not wrapped within
    usage = wrapped(" ".join(["usage: sscl", name, *whole]), width=width, indent=" " * 7)
    about = inspect.getdoc(kind) or ""
    about = about if every else about.partition("\n\n")[0]
    parts = [usage.replace("\N{NO-BREAK SPACE}", " "), wrapped(about, width=width)]
    parts += ["\n".join(["Words", *two_columns(rows, width=width)])]
    parts += ["\n".join(["Options", *two_columns(options, width=width)])]
    if every or not all_keys(kind):
        parts += [help_text(kind, width=width)]
    else:
        parts += [short_help(kind, width=width)]
        left_out = len(all_keys(kind)) - len(common_keys(kind))
        said = f"sscl {name} --help-all lists every key with all that is to say of it."
        parts += [said] if left_out else []
    return "\n\n".join(parts)


def _options(command: Command) -> tuple[str, ...]:
    return ("config", *command.flags, *dict(command.options))


def _fail(message: str) -> int:
    of_rank = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    for line in message.splitlines():
        said = f"sscl: {of_rank}{line}"
        print(folded(said, width=columns()) if sys.stderr.isatty() else said, file=sys.stderr)
    return 2
