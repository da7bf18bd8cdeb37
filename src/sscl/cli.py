"""The command line: `sscl COMMAND --config FILE.yaml [KEY=VALUE ...]`; a shipped config goes by its name.

The table below is the only list of commands. Nothing heavy is imported before a command is chosen.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import inspect
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sscl.config import Section


@dataclass(frozen=True)
class Command:
    """A command: where its function is, what its configuration is called, and which flags it has."""

    function: str  # module:function
    config: str  # class in sscl.config
    summary: str
    flags: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()  # name and key of each that has a value: --folds 5 is train.folds=5
    positional: str | None = None  # the key that a word without = sets
    many: bool = False  # whether that key is the list of all such words
    interrupted: str = "every file is complete or absent; run it again with --overwrite"  # said after Ctrl-C


COMMANDS = {
    "demo": Command("demo:main", "DemoConfig", "run the whole method on synthetic polyps, in minutes", ("overwrite",)),
    "configs": Command(
        "configs:main",
        "ConfigsConfig",
        "list the configs that come with sscl, or print one",
        positional="name",
        interrupted="nothing is written",
    ),
    "data synth": Command(
        "data:synth",
        "SynthConfig",
        "write synthetic polyp tiles in MHIST's layout",
        interrupted="nothing is written; run it again",
    ),
    "data download": Command(
        "download:main",
        "DownloadConfig",
        "download PathMNIST and verify its checksum",
        positional="name",
        interrupted="run it again to continue the download",
    ),
    "data inspect": Command(
        "data:inspect", "InspectConfig", "count the tiles; show samples, classes and augmentations", ("overwrite",)
    ),
    "data audit": Command(
        "audit:main", "AuditConfig", "find duplicates within and across splits, and outliers", ("overwrite", "strict")
    ),
    "pretrain": Command(
        "pretrain:main",
        "PretrainConfig",
        "train an encoder without labels (SimCLR)",
        ("resume", "overwrite"),
        interrupted="--resume continues from the last complete epoch, if there is one; --overwrite starts again",
    ),
    "finetune": Command(
        "finetune:main",
        "FinetuneConfig",
        "train a classifier with labels, or cross-validate it",
        ("overwrite",),
        options=(("folds", "train.folds"),),
        interrupted=(
            "checkpoints/best.pt, if there is one, is the best of the complete epochs; --overwrite starts again, and "
            "with --folds the same command continues with the folds that are missing"
        ),
    ),
    "eval": Command(
        "evaluate:main", "EvalConfig", "metrics with 95% intervals, confusion matrix, curves", ("overwrite",)
    ),
    "compare": Command(
        "compare:main",
        "CompareConfig",
        "compare runs over seeds and label fractions, or finished runs",
        ("overwrite",),
        positional="finished",
        many=True,
        interrupted="run it again, with --overwrite where it asks for that: complete runs are reused",
    ),
    "probe": Command(
        "probe:main",
        "ProbeConfig",
        "compare encoders by linear probe and k-NN",
        ("overwrite",),
        interrupted="run it again with --overwrite: features that are complete are read from the cache",
    ),
    "embed": Command("embed:main", "EmbedConfig", "embeddings of a tile set, 2D maps and clusters", ("overwrite",)),
    "gradcam": Command("gradcam:main", "GradcamConfig", "heatmaps and boxes: where the model looked", ("overwrite",)),
    "report": Command(
        "report:main",
        "ReportConfig",
        "one HTML page of runs, with a gallery of tiles to review",
        ("overwrite",),
        positional="runs",
        many=True,
    ),
    "predict": Command(
        "predict:main",
        "PredictConfig",
        "classify new tiles: calibrated probabilities, abstention",
        ("overwrite",),
        options=(("checkpoint", "checkpoint"),),
        positional="paths",
        many=True,
    ),
    "export": Command(
        "export:main", "ExportConfig", "write the encoder or classifier for other programs", ("overwrite",)
    ),
}
STAGES = {
    "First steps": ("demo", "configs"),
    "Data": ("data synth", "data download", "data inspect", "data audit"),
    "Train": ("pretrain", "finetune"),
    "Evaluate": ("eval", "compare", "probe", "embed"),
    "Explain": ("gradcam", "report"),
    "Use": ("predict", "export"),
}
OPTIONS = {  # how each is written, and what it does
    "config": ("FILE|NAME", "YAML file, or the name of a shipped config (sscl configs lists them)"),
    "checkpoint": ("RUN", "finetune run folder or checkpoint file (checkpoint=RUN)"),
    "folds": ("K", "K-fold cross-validation (train.folds=K); run again, it continues with the missing folds"),
    "resume": ("", "continue from the run folder's last checkpoint"),
    "overwrite": ("", "replace what sscl wrote there before"),
    "strict": ("", "exit with code 1 if the split leaks"),
}


def overview(commands: Mapping[str, Command] = COMMANDS) -> str:
    """Return the text of `sscl --help`, or of a group of commands."""
    width = max(map(len, COMMANDS))
    lines = []
    for stage, names in STAGES.items():
        rows = [f"  {name:<{width}}  {commands[name].summary}" for name in names if name in commands]
        lines += ["", stage, *rows] if rows else []
    return "\n".join(
        [
            "usage: sscl COMMAND [--config FILE|NAME] [KEY=VALUE ...]",
            "",
            "Classifiers of H&E tiles from few labels: self-supervised pretraining,",
            "fine-tuning, evaluation, and heatmaps of where the model looked.",
            *lines,
            "",
            "sscl COMMAND --help lists every key with its default. KEY=VALUE, as in",
            "train.epochs=10, comes on top of the YAML file.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0, or what the command returns: 1 for what --strict forbids, 3 for files that predict could not read; 2 for bad
    input, after one line on standard error for each fault; 130 after Ctrl-C; 141 if the reader of the output is gone.
    A traceback means a bug in sscl.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except ValueError as error:
        return _fail(str(error))
    except BrokenPipeError:  # as when piped into `head`; at exit Python would flush, and fail, once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # sscl's have a sentence; the system's a file: not allowed, missing, disk full
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        name = _named(words)
        _fail("interrupted" if name is None else f"interrupted; {COMMANDS[name].interrupted}")
        return 130
    except (MemoryError, RuntimeError) as error:
        line = _in_one_line(error, words)
        if line is None:
            raise
        return _fail(line)


def _in_one_line(error: BaseException, words: Sequence[str]) -> str | None:
    """Return what an error of torch and its libraries means in the command that these words call, None if unknown."""
    from sscl.failures import in_one_line

    return in_one_line(error, _named(words) or "")


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from sscl import __version__

        print(f"sscl {__version__}")
        return 0
    group = {key: command for key, command in COMMANDS.items() if key.split()[0] == words[0] and key != words[0]}
    if group and words[1:] and words[1] in ("-h", "--help"):
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


def _run(name: str, words: Sequence[str]) -> int:
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"sscl {name}", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    parser.add_argument("-h", "--help", action="store_true")
    for flag in command.flags:
        parser.add_argument(f"--{flag}", action="store_true")
    for option, _ in command.options:
        parser.add_argument(f"--{option}")
    parser.add_argument("overrides", nargs="*")
    try:
        given, unknown = parser.parse_known_intermixed_args(list(words))
    except argparse.ArgumentError as error:
        raise ValueError(str(error).removeprefix("argument ")) from None

    from sscl import config as configs

    kind = getattr(configs, command.config)
    if given.help:
        print(_help(name, kind))
        return 0
    if unknown:
        flags = ", ".join(f"--{option}" for option in _options(command))
        raise ValueError(f"{unknown[0]}: unknown option; allowed are {flags} and KEY=VALUE")
    overrides = as_overrides(command, given.overrides)
    overrides += [f"{key}={value}" for option, key in command.options if (value := getattr(given, option)) is not None]
    config = configs.load_config(kind, given.config, overrides=overrides)
    module, function = command.function.split(":")
    chosen = {flag: getattr(given, flag) for flag in command.flags}
    gc.disable()  # imports make a million objects and hardly any garbage: looking for it is a seventh of the start
    try:
        command_module = importlib.import_module(f"sscl.commands.{module}")
    finally:
        gc.enable()
    code: int | None = getattr(command_module, function)(config, **chosen)
    return code or 0


def _help(name: str, kind: type[Section]) -> str:
    """Return the text of `sscl COMMAND --help`, as wide as the terminal; 80 columns where there is none."""
    from sscl.config.help import columns, help_text, wrapped

    command, width = COMMANDS[name], min(shutil.get_terminal_size().columns, 120)
    options = {f"--{option} {OPTIONS[option][0]}".rstrip(): OPTIONS[option][1] for option in _options(command)}
    word = [f"[{command.positional.upper()}{' ...' if command.many else ''}]"] if command.positional else []
    words = [*word, *(f"[{option}]" for option in options), "[KEY=VALUE ...]"]
    whole = [word.replace(" ", "\N{NO-BREAK SPACE}") for word in words]  # not wrapped within
    usage = wrapped(" ".join(["usage: sscl", name, *whole]), width=width, indent=" " * 7)
    parts = [usage.replace("\N{NO-BREAK SPACE}", " "), wrapped(inspect.getdoc(kind) or "", width=width)]
    parts += ["\n".join(["Options", *columns(options, width=width)]), help_text(kind, width=width)]
    return "\n\n".join(parts)


def _options(command: Command) -> tuple[str, ...]:
    return ("config", *command.flags, *dict(command.options))


def as_overrides(command: Command, words: Sequence[str]) -> list[str]:
    """Return the words as KEY=VALUE: those without = are the value of the command's positional key, if any.

    If that key is no list, its value is the first of them. A word with a / before its = is a path: no key has one.
    """
    bare = [i for i, word in enumerate(words) if word and ("=" not in word or "/" in word.partition("=")[0])]
    if command.positional is None or not bare:
        return list(words)
    import json

    taken = bare if command.many else bare[:1]
    value = words[taken[0]]
    if command.many:
        value = json.dumps([words[i] for i in taken], ensure_ascii=False)  # JSON is YAML
    overrides: list[str | None] = [None if i in taken else word for i, word in enumerate(words)]
    overrides[taken[0]] = f"{command.positional}={value}"
    return [word for word in overrides if word is not None]


def _fail(message: str) -> int:
    of_rank = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    for line in message.splitlines():
        print(f"sscl: {of_rank}{line}", file=sys.stderr)
    return 2
