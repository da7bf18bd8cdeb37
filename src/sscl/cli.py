"""The command line: `sscl COMMAND --config FILE.yaml [key.path=value ...]`; a shipped config goes by its name.

The table below is the only list of commands. Nothing heavy is imported before a command is chosen.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command: where its function is, what its configuration is called, and which flags it takes."""

    function: str  # module:function
    config: str  # class in sscl.config
    summary: str
    flags: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()  # name and key of each that takes a value: --folds 5 is train.folds=5
    positional: str | None = None  # the key that a word without = sets
    many: bool = False  # whether that key takes all such words, as a list


COMMANDS = {
    "demo": Command("demo:main", "DemoConfig", "the whole method on synthetic polyps, in minutes", ("overwrite",)),
    "configs": Command("configs:main", "ConfigsConfig", "list the shipped configs, or print one", positional="name"),
    "data synth": Command("data:synth", "SynthConfig", "write procedural polyp tiles in the MHIST layout"),
    "data download": Command("download:main", "DownloadConfig", "fetch PathMNIST, checked by md5", positional="name"),
    "data inspect": Command(
        "data:inspect", "InspectConfig", "count tiles; draw contact sheet, distribution and two views", ("overwrite",)
    ),
    "data audit": Command(
        "audit:main",
        "AuditConfig",
        "check a split for leakage; list near-duplicates and outliers",
        ("overwrite", "strict"),
    ),
    "pretrain": Command(
        "pretrain:main", "PretrainConfig", "contrastive pretraining without labels", ("resume", "overwrite")
    ),
    "finetune": Command(
        "finetune:main",
        "FinetuneConfig",
        "train a classifier with labels; cross-validate it",
        ("overwrite",),
        options=(("folds", "train.folds"),),
    ),
    "eval": Command("evaluate:main", "EvalConfig", "metrics with intervals, confusion matrix, curves", ("overwrite",)),
    "compare": Command(
        "compare:main",
        "CompareConfig",
        "runs over seeds and label shares, or finished ones, side by side",
        ("overwrite",),
        positional="finished",
        many=True,
    ),
    "probe": Command(
        "probe:main", "ProbeConfig", "what frozen features are worth: linear probe and kNN, by encoder", ("overwrite",)
    ),
    "gradcam": Command("gradcam:main", "GradcamConfig", "heatmaps and boxes: where the model looked", ("overwrite",)),
    "predict": Command(
        "predict:main",
        "PredictConfig",
        "the classes of new tiles, calibrated, with abstention",
        ("overwrite",),
        options=(("checkpoint", "checkpoint"),),
        positional="paths",
        many=True,
    ),
    "report": Command(
        "report:main",
        "ReportConfig",
        "one page (HTML, no network) of runs, with a gallery of tiles to review",
        ("overwrite",),
        positional="runs",
        many=True,
    ),
    "embed": Command("embed:main", "EmbedConfig", "embeddings, 2D maps, clusters of a tile set", ("overwrite",)),
    "export": Command(
        "export:main", "ExportConfig", "the trunk or classifier as files for other programs", ("overwrite",)
    ),
}
FLAG_HELP = {
    "checkpoint": "RUN: the finetune run folder, or checkpoint file (checkpoint=RUN)",
    "folds": "K: cross-validation (train.folds=K); again after an interruption, it keeps the folds that are complete",
    "resume": "go on from the run folder's last checkpoint",
    "overwrite": "replace what is to be written, if it is sscl's",
    "strict": "end with exit code 1 where the split leaks",
}


def overview(commands: Mapping[str, Command] = COMMANDS) -> str:
    """Return the text of `sscl --help`, or of a group of commands."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(
        [
            "usage: sscl COMMAND [--config FILE.yaml|NAME] [key.path=value ...]",
            "",
            "Self-supervised contrastive learning on H&E colon tiles.",
            "",
            *lines,
            "",
            "`sscl COMMAND --help` lists every key with its default.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0, or what the command returns: 1 for what --strict forbids, 3 for files that predict could not read; 2 after a line
    on standard error for each fault that the user can mend; 130 after Ctrl-C; 141 where the reader of the output has
    left. A traceback is for our own bugs.
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
    except OSError as error:  # ours carry a sentence; the system's a file: not allowed, not there, disk full
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        _fail("interrupted; what was written up to the last epoch is whole")
        return 130
    except MemoryError:
        return _fail(f"out of memory: {_less_memory()}")
    except RuntimeError as error:
        text = str(error).lower()
        if "out of memory" in text:
            return _fail(f"out of GPU memory: {_less_memory()}")
        if "can't allocate memory" in text:  # torch's CPU allocator
            return _fail(f"out of memory: {_less_memory()}")
        if os.environ.get("WORLD_SIZE", "1") != "1" and re.search("gloo|nccl|timed out|connection", text):
            first = str(error).strip().splitlines()[0]
            return _fail(f"another rank ended, or was silent for train.timeout_minutes ({first[:200]})")
        raise


def _less_memory() -> str:
    from sscl.train.memory import out_of_memory_hint

    return f"{out_of_memory_hint()}; for eval, gradcam and the like lower batch_size"


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from sscl import __version__

        print(f"sscl {__version__}")
        return 0
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    group = {key: command for key, command in COMMANDS.items() if key.split()[0] == words[0] and key != words[0]}
    if group and words[1:] and words[1] in ("-h", "--help"):
        print(overview(group))
        return 0
    if name not in COMMANDS:
        raise ValueError(_no_command(words))
    return _run(name, words[len(name.split()) :])


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
        flags = "".join(f" [--{flag}]" for flag in command.flags)
        flags += "".join(f" [--{option} K]" for option, _ in command.options)
        word = f" [{command.positional.upper()}{' ...' if command.many else ''}]" if command.positional else ""
        print(f"usage: sscl {name}{word} [--config FILE.yaml|NAME]{flags} [key.path=value ...]\n\n{kind.__doc__}\n")
        for flag in (*command.flags, *(option for option, _ in command.options)):
            print(f"  --{flag:<12}{FLAG_HELP[flag]}")
        print(f"\nkeys, defaults, meanings:\n{configs.help_text(kind)}")
        return 0
    if unknown:
        flags = ", ".join(f"--{flag}" for flag in ("config", *command.flags, *dict(command.options)))
        raise ValueError(f"{unknown[0]}: unknown option; allowed are {flags} and key.path=value")
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


def as_overrides(command: Command, words: Sequence[str]) -> list[str]:
    """Return the words as key.path=value: those without = are the value of the command's positional key, if any.

    Unless that key takes many, it takes the first one. A word with a / before its = is a path: no key has one.
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
