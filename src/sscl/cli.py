"""The command line: `sscl COMMAND [CONFIG] [RUN] [TILES] [KEY=VALUE ...]`; a shipped config goes by its name.

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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sscl.arguments import CONFIG, RUN, TILES, Sorted, Word, check_tiles, sort_words
from sscl.terminal import columns, folded, printing

if TYPE_CHECKING:
    from sscl.config import Section


@dataclass(frozen=True)
class Command:
    """A command: where its function is, what its configuration is called, and which words and flags it takes."""

    function: str  # module:function
    config: str  # class in sscl.config
    summary: str
    flags: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()  # name and key of each that has a value: --folds 5 is train.folds=5
    words: tuple[Word, ...] = ()  # without =, in order
    interrupted: str = "every file is complete or absent; run it again with --overwrite"  # said after Ctrl-C

    @property
    def takes(self) -> tuple[Word, ...]:
        """All words: a config too, but for the command whose word is the name of one."""
        return self.words if self.config == "ConfigsConfig" else (CONFIG, *self.words)


COMMANDS = {
    "demo": Command(
        "demo:main",
        "DemoConfig",
        "run the whole method on synthetic polyps, in minutes",
        ("overwrite",),
        words=(Word("DIR", "run", "the folder to write"),),
    ),
    "configs": Command(
        "configs:main",
        "ConfigsConfig",
        "list the configs that come with sscl, or print one",
        words=(Word("NAME", "name", "the config to print"),),
        interrupted="nothing is written",
    ),
    "data synth": Command(
        "data:synth",
        "SynthConfig",
        "write synthetic polyp tiles in MHIST's layout",
        words=(Word("DIR", "root", "the folder to write"),),
        interrupted="nothing is written; run it again",
    ),
    "data download": Command(
        "download:main",
        "DownloadConfig",
        "download PathMNIST and verify its checksum",
        words=(Word("NAME", "name", "pathmnist, or pathmnist_64, _128 or _224"),),
        interrupted="run it again to continue the download",
    ),
    "data inspect": Command(
        "data:inspect",
        "InspectConfig",
        "count the tiles; show samples, classes and augmentations",
        ("overwrite",),
        words=(TILES,),
    ),
    "data audit": Command(
        "audit:main",
        "AuditConfig",
        "find duplicates within and across splits, and outliers",
        ("overwrite", "strict"),
        words=(TILES,),
    ),
    "cache": Command(
        "cache:main",
        "CacheConfig",
        "list the cache of decoded tiles and features, or empty it",
        ("empty",),
        words=(Word("DIR", "cache_dir", "the cache folder"),),
        interrupted="every file is whole or gone; run it again",
    ),
    "pretrain": Command(
        "pretrain:main",
        "PretrainConfig",
        "train an encoder without labels (SimCLR)",
        ("resume", "overwrite"),
        words=(TILES,),
        interrupted="--resume continues from the last complete epoch, if there is one; --overwrite starts again",
    ),
    "finetune": Command(
        "finetune:main",
        "FinetuneConfig",
        "train a classifier with labels, or cross-validate it",
        ("resume", "overwrite"),
        options=(("folds", "train.folds"),),
        words=(TILES,),
        interrupted=(
            "--resume continues from the last complete epoch, if there is one; --overwrite starts again; with --folds "
            "the same command continues"
        ),
    ),
    "eval": Command(
        "evaluate:main",
        "EvalConfig",
        "metrics with 95% intervals, confusion matrix, curves",
        ("overwrite",),
        options=(("checkpoint", "checkpoint"),),
        words=(RUN, replace(TILES, about="other tiles than those it was trained on")),
    ),
    "compare": Command(
        "compare:main",
        "CompareConfig",
        "compare runs over seeds and label fractions, or finished runs",
        ("overwrite",),
        words=(Word("RUN", "finished", "finished finetune runs, or folders with a predictions.csv", many=True),),
        interrupted="run it again, with --overwrite where it asks for that: complete runs are reused",
    ),
    "probe": Command(
        "probe:main",
        "ProbeConfig",
        "compare encoders by linear probe and k-NN",
        ("overwrite",),
        interrupted="run it again with --overwrite: features that are complete are read from the cache",
    ),
    "embed": Command(
        "embed:main",
        "EmbedConfig",
        "embeddings of a tile set, 2D maps and clusters",
        ("overwrite",),
        words=(Word("RUN", "encoder.weights", "run folder, file of weights, or imagenet"), TILES),
    ),
    "gradcam": Command(
        "gradcam:main",
        "GradcamConfig",
        "heatmaps and boxes: where the model looked",
        ("overwrite",),
        options=(("checkpoint", "checkpoint"),),
        words=(RUN, Word("IMAGES", "images", "a folder of image files, instead of the data set", exists=True)),
    ),
    "report": Command(
        "report:main",
        "ReportConfig",
        "one HTML page of runs, with a gallery of tiles to review",
        ("overwrite",),
        words=(Word("RUN", "runs", "folders that sscl wrote; the page is about the first finetune run", many=True),),
    ),
    "predict": Command(
        "predict:main",
        "PredictConfig",
        "classify new tiles: calibrated probabilities, abstention",
        ("overwrite",),
        options=(("checkpoint", "checkpoint"),),
        words=(RUN, Word("TILES", "paths", "folders, image files and CSV lists of new tiles", many=True)),
    ),
    "export": Command(
        "export:main",
        "ExportConfig",
        "write the encoder or classifier for other programs",
        ("overwrite",),
        options=(("checkpoint", "checkpoint"),),
        words=(replace(RUN, about="run folder, checkpoint, or file of an encoder"),),
    ),
}
STAGES = {
    "First steps": ("demo", "configs"),
    "Data": ("data synth", "data download", "data inspect", "data audit", "cache"),
    "Train": ("pretrain", "finetune"),
    "Evaluate": ("eval", "compare", "probe", "embed"),
    "Explain": ("gradcam", "report"),
    "Use": ("predict", "export"),
}
OPTIONS = {  # how each is written, and what it does
    "config": ("FILE|NAME", "the same as the word CONFIG"),
    "checkpoint": ("RUN", "the same as the word RUN"),
    "folds": ("K", "K-fold cross-validation (train.folds=K); run again, it continues with the missing folds"),
    "resume": ("", "continue a run after its last complete epoch: sscl COMMAND RUN --resume"),
    "empty": ("", "delete what is listed"),
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
            "usage: sscl COMMAND [CONFIG] [RUN] [TILES] [KEY=VALUE ...]",
            "",
            "Classifiers of H&E tiles from few labels: self-supervised pretraining,",
            "fine-tuning, evaluation, and heatmaps of where the model looked.",
            *lines,
            "",
            "sscl COMMAND --help lists its words, and every key with its default.",
            "CONFIG is a YAML file, or a name that sscl configs lists. KEY=VALUE, as in",
            "train.epochs=10, comes on top of it; text and paths are taken as typed.",
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
        with printing():
            return _dispatch(words)
    except ValueError as error:
        return _fail(str(error))
    except BrokenPipeError:  # as when piped into `head`; at exit Python would flush, and fail, once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # sscl's have a sentence; the system's a file: not allowed, missing, disk full
        unnamed = f"a file could not be read or written ({error.strerror})" if error.errno else str(error)
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else unnamed)
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


@dataclass(frozen=True)
class Given:
    """What the words after a command say."""

    kind: type[Section]  # of its configuration
    found: Sorted
    flags: Mapping[str, bool]
    help: bool

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
    if given.help:
        return Given(kind, Sorted(None, ()), flags, help=True)
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
    return Given(kind, found, flags, help=False)


def _run(name: str, words: Sequence[str]) -> int:
    command, given = COMMANDS[name], parse(name, words)
    if given.help:
        print(_help(name, given.kind))
        return 0
    check_tiles(given.kind, given.found, command.takes)
    config = given.load()
    module, function = command.function.split(":")
    gc.disable()  # imports make a million objects and hardly any garbage: looking for it is a seventh of the start
    try:
        command_module = importlib.import_module(f"sscl.commands.{module}")
    finally:
        gc.enable()
    code: int | None = getattr(command_module, function)(config, **given.flags)
    return code or 0


def _help(name: str, kind: type[Section]) -> str:
    """Return the text of `sscl COMMAND --help`, as wide as the terminal; 80 columns where there is none."""
    from sscl.config.help import columns as two_columns
    from sscl.config.help import help_text, wrapped

    command, width = COMMANDS[name], min(shutil.get_terminal_size().columns, 120)
    options = {f"--{option} {OPTIONS[option][0]}".rstrip(): OPTIONS[option][1] for option in _options(command)}
    named = [f"{word.name}{' ...' if word.many else ''}" for word in command.takes]
    keys = ["--config NAME" if word is CONFIG else f"{word.key}={word.name}" for word in command.takes]
    rows = {word: f"{of.about} ({key})" for word, of, key in zip(named, command.takes, keys, strict=True)}
    own = [option for option in options if option.split()[0] not in ("--config", "--checkpoint")]
    words = [*(f"[{word}]" for word in [*named, *own]), "[KEY=VALUE ...]"]
    whole = [word.replace(" ", "\N{NO-BREAK SPACE}") for word in words]  # not wrapped within
    usage = wrapped(" ".join(["usage: sscl", name, *whole]), width=width, indent=" " * 7)
    parts = [usage.replace("\N{NO-BREAK SPACE}", " "), wrapped(inspect.getdoc(kind) or "", width=width)]
    parts += ["\n".join(["Words", *two_columns(rows, width=width)])]
    parts += ["\n".join(["Options", *two_columns(options, width=width)]), help_text(kind, width=width)]
    return "\n\n".join(parts)


def _options(command: Command) -> tuple[str, ...]:
    return ("config", *command.flags, *dict(command.options))


def _fail(message: str) -> int:
    of_rank = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    for line in message.splitlines():
        said = f"sscl: {of_rank}{line}"
        print(folded(said, width=columns()) if sys.stderr.isatty() else said, file=sys.stderr)
    return 2
