from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Callable

import cv2
import pytest
import torch

from sscl import __version__, children, cli
from sscl.data.cache import cache_folder
from sscl.memory import advice

COMPLETE = ["pretrain", "run=r", "data.root=d"]


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, list[str]]:
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


@pytest.fixture
def runs_instead(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that has a command's function, by its place in `sscl.commands`, do something else."""
    return lambda place, action: monkeypatch.setattr(f"sscl.commands.{place}", action)


@pytest.fixture
def pretrain_raises(runs_instead: Callable[..., None]) -> Callable[..., None]:
    """Return a function that makes pretrain, or another command, raise an error in place of working."""

    def arrange(error: BaseException, *, place: str = "pretrain.main") -> None:
        def fail(config: object, **flags: bool) -> None:
            raise error

        runs_instead(place, fail)

    return arrange


def in_a_process(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, **options)


def test_overview_and_version(capsys):
    for words in ((), ("--help",), ("-h",)):
        code, out, err = call(capsys, *words)
        assert (code, err) == (0, [])
        assert max(map(len, out.splitlines())) <= 80
        for name, command in cli.COMMANDS.items():
            assert any(line.split() == [*name.split(), *command.summary.split()] for line in out.splitlines())
    assert call(capsys, "--version") == (0, f"sscl {__version__}\n", [])


@pytest.mark.parametrize(
    ("words", "key", "hint"),
    [
        (["pretrian"], "no command 'pretrian'", "did you mean pretrain?"),
        (["evaluate", "x=1"], "no command 'evaluate'", "did you mean eval?"),
        (["synth"], "no command 'synth'", "did you mean data synth?"),
        (["data"], "no command 'data'", "data synth, data download, data inspect, data audit"),
        (["data", "synht"], "no command 'data synht'", "did you mean data synth?"),
        (["xyzzy"], "no command 'xyzzy'", f"allowed are {', '.join(cli.COMMANDS)}"),
        (["pretrain", "--confg", "x"], "--confg", "--config, --resume, --overwrite"),
        (["eval", "--resume"], "--resume", "--config, --overwrite"),
        (["eval", "--checkpoint"], "--checkpoint", ""),
        (["pretrain", "--config"], "--config", ""),
        (["pretrain", "--config", "none.yaml"], "--config", "none.yaml"),
        (["pretrain", "train.epochs"], "argument 'train.epochs'", "KEY=VALUE"),
        ([*COMPLETE, "train.epoch=1"], "train.epoch", "did you mean train.epochs?"),
        ([*COMPLETE, "--resume", "--overwrite"], "--resume", "--overwrite"),
        ([*COMPLETE, "--resume"], "r", "nothing to resume"),
        (["finetune", "--resume"], "run", "run=runs/a"),
        (["eval", "checkpoint=none"], "none", "no such run folder"),
        (["eval", "none"], "none", "no such run folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, key, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith(f"sscl: {key}")
    assert hint in err[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("word", "given"), [("overwrite=true", True), ("overwrite=false", False)])
def test_a_flag_may_be_a_key(word, given):
    assert cli.parse("eval", ["runs/x", word]).flags == {"overwrite": given}


def test_a_flag_is_true_or_false(capsys):
    code, _, (line,) = call(capsys, "eval", "runs/x", "overwrite=maybe")
    assert (code, line.startswith("sscl: overwrite: ")) == (2, True)


def test_a_package_that_is_missing_is_one_line(pretrain_raises, capsys):
    pretrain_raises(ModuleNotFoundError("No module named 'cv2'", name="cv2"))
    code, _, (line,) = call(capsys, *COMPLETE)
    assert (code, "cv2" in line) == (2, True)


def test_each_fault_is_a_line(capsys):
    code, _, err = call(capsys, "pretrain")
    assert code == 2
    assert [line.split(": missing")[0] for line in err] == ["sscl: run", "sscl: data.root"]


def test_options_may_stand_anywhere(runs_instead, tmp_path):
    seen = []
    runs_instead("pretrain.main", lambda config, **flags: seen.append((config.run, config.seed, flags)))
    assert cli.main(["pretrain", "run=a", "--overwrite", "data.root=d", "seed=3"]) == 0
    (tmp_path / "config.yaml").write_text("run: b\ndata: [{root: d}]\ntrain: {stop_after_epoch: 1}\n")
    assert cli.main(["pretrain", f"run={tmp_path}", "data.root=e", "--resume"]) == 0
    assert seen == [
        ("a", 3, {"resume": False, "overwrite": True}),
        (str(tmp_path), 0, {"resume": True, "overwrite": False}),
    ]


def read(*words: str) -> dict[str, object]:
    """What the words of a command say: its config, and the keys that words without = set."""
    name = next(name for name in (" ".join(words[:2]), words[0]) if name in cli.COMMANDS)
    found = cli.parse(name, words[len(name.split()) :]).found
    bare = dict(override for override in found.overrides if isinstance(override, tuple))
    return bare if found.config is None else {"config": found.config, **bare}


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("eval runs/x", {"checkpoint": "runs/x"}),
        ("eval demo/eval runs/x", {"config": "demo/eval", "checkpoint": "runs/x"}),
        ("eval runs/x ../tiles", {"checkpoint": "runs/x", "data.root": "../tiles"}),
        ("eval checkpoint=runs/x tiles", {"data.root": "tiles"}),
        ("gradcam --overwrite runs/x", {"checkpoint": "runs/x"}),
        ("export runs/x", {"checkpoint": "runs/x"}),
        ("predict runs/x a b/c=1.png 7 é", {"checkpoint": "runs/x", "paths": ["a", "b/c=1.png", "7", "é"]}),
        ("predict --checkpoint runs/x a b", {"paths": ["a", "b"]}),
        ("predict a checkpoint=runs/x b", {"paths": ["a", "b"]}),
        ("report runs/x audit", {"runs": ["runs/x", "audit"]}),
        ("compare a b", {"finished": ["a", "b"]}),
        ("compare my.yaml", {"config": "my.yaml"}),
        ("compare --config my.yaml a.yml b", {"config": "my.yaml", "finished": ["a.yml", "b"]}),
        ("probe colon/probe", {"config": "colon/probe"}),
        ("pretrain my.yaml run=r", {"config": "my.yaml"}),
        ("finetune from=runs/x demo/finetune tiles", {"config": "demo/finetune", "data.root": "tiles"}),
        ("embed runs/x tiles", {"encoder.weights": "runs/x", "data.root": "tiles"}),
        ("embed imagenet data.root=t", {"encoder.weights": "imagenet"}),
        ("data audit tiles", {"data.root": "tiles"}),
        ("data inspect tiles", {"data.root": "tiles"}),
        ("data synth tiles", {"root": "tiles"}),
        ("data download out=d pathmnist_64", {"name": "pathmnist_64"}),
        ("configs demo/pretrain", {"name": "demo/pretrain"}),
        ("demo there", {"run": "there"}),
    ],
)
def test_what_a_word_means(words, meaning):
    assert read(*words.split()) == meaning


@pytest.mark.parametrize(
    ("words", "key", "hints"),
    [
        ("eval runs/x tiles more", "argument 'more'", ["RUN", "TILES", "KEY=VALUE"]),
        ("probe runs/x", "argument 'runs/x'", ["CONFIG", "KEY=VALUE"]),
        ("pretrain none", "argument 'none'", ["no such file or folder", "working folder {here}", "CONFIG", "TILES"]),
        ("pretrain demo/pretrian", "argument 'demo/pretrian'", ["did you mean the config demo/pretrain?"]),
        ("pretrain seed", "argument 'seed'", ["seed=..."]),
        ("finetune a_run", "argument 'a_run'", ["run folder", "from=a_run"]),
        ("eval a_run a_run", "argument 'a_run'", ["run folder", "RUN"]),
        ("pretrain demo/pretrain", "demo/pretrain", ["--config demo/pretrain", "./demo/pretrain"]),
        ("data inspect pretrian", "argument 'pretrian'", ["no such file or folder"]),
    ],
)
def test_a_word_that_is_wrong_brings_what_words_mean(words, key, hints, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a_run/checkpoints", "demo/pretrain"):
        (tmp_path / folder).mkdir(parents=True)
    code, out, err = call(capsys, *words.split())
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith(f"sscl: {key}: ")
    for hint in hints:
        assert hint.format(here=tmp_path) in err[0]


def test_a_run_to_resume_is_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_run/checkpoints").mkdir(parents=True)
    assert read("pretrain", "a_run", "--resume") == {"run": "a_run"}


def test_words_are_taken_as_typed(tmp_path, monkeypatch):
    (tmp_path / "x=1.png").touch()  # a file, though it has a =
    monkeypatch.chdir(tmp_path)
    words = ["a #1", "[b", "7", "null", '"q"', "café", "x=1.png"]
    found = cli.parse("predict", ["--checkpoint", "c: d", *words])
    config = found.load()
    assert (config.checkpoint, config.paths) == ("c: d", tuple(words))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("data.root: empty"), 2, "sscl: data.root: empty"),
        (FileNotFoundError("no such run"), 2, "sscl: no such run"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), 2, "sscl: a.csv: No such file or directory"),
        (PermissionError(13, "Permission denied", "/r"), 2, "sscl: /r: Permission denied"),
        (NotADirectoryError(20, "Not a directory", "/r/x"), 2, "sscl: /r/x: Not a directory"),
        (
            OSError(28, "No space left on device"),
            2,
            "sscl: a file could not be read or written (No space left on device)",
        ),
    ],
)
def test_what_a_command_raises(error, code, line, pretrain_raises, capsys):
    pretrain_raises(error)
    assert call(capsys, *COMPLETE) == (code, "", [line])


@pytest.mark.parametrize(
    ("words", "place", "advice"),
    [
        (COMPLETE, "pretrain.main", "--resume"),
        (["finetune", "run=r", "data.root=d"], "finetune.main", "--overwrite"),
        (["eval", "checkpoint=c"], "evaluate.main", "nothing is lost"),
        (["data", "synth", "root=r"], "data.synth", "nothing is written"),
        (["compare", "a", "b"], "compare.main", "reused"),
    ],
)
def test_after_ctrl_c_each_command_says_how_to_go_on(words, place, advice, pretrain_raises, capsys):
    pretrain_raises(KeyboardInterrupt(), place=place)
    code, _, (line,) = call(capsys, *words)
    assert (code, line.startswith("sscl: interrupted; ")) == (130, True)
    assert advice in line


def test_a_command_that_another_runs_leaves_that_line_to_it(pretrain_raises, monkeypatch, capsys):
    monkeypatch.setattr(children, "_children", [True])
    pretrain_raises(KeyboardInterrupt())
    assert call(capsys, *COMPLETE) == (children.INTERRUPTED, "", [])


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_out_of_memory_names_the_keys_to_lower(error, pretrain_raises, capsys):
    pretrain_raises(error("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."))
    code, _, err = call(capsys, *COMPLETE)
    assert code == 2
    assert len(err) == 1
    assert err[0].startswith("sscl: out of GPU memory: ")
    assert advice("pretrain") in err[0]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", ["out of GPU memory", "train.microbatch"]),
        (
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            ["out of GPU memory", "train.batch_size"],
        ),
        (
            "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
            ["NOT_INITIALIZED", "nvidia-smi", "microbatch"],
        ),
        ("GET was unable to find an engine to execute this computation", ["nvidia-smi", "train.microbatch"]),
        (
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be ...",
            ["device: ", torch.__version__, "device=cpu"],
        ),
        (
            "Found Tesla P100 which is too old to be supported by the triton GPU compiler, which is ...",
            ["train.compile=false", "7.0"],
        ),
        ("Failed to find C compiler. Please specify via CC environment variable.", ["gcc", "CC="]),
        (
            "InvalidCxxCompiler: No working C++ compiler found in torch._inductor",
            ["train.compile=false"],
        ),
    ],
)
def test_errors_of_the_libraries_are_one_line(message, says, pretrain_raises, capsys):
    pretrain_raises(RuntimeError(message))
    code, _, err = call(capsys, *COMPLETE)
    assert (code, len(err)) == (2, 1)
    assert all(word in err[0] for word in says), err[0]


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3145728 bytes."), "3.0 MiB"),
        (MemoryError("Unable to allocate 2.50 GiB for an array with shape (5, 7)"), "2.5 GiB more were needed"),
        (cv2.error("(-4:Insufficient memory) Failed to allocate 1048576 bytes"), "1.0 MiB more were needed"),
        (MemoryError(), "train.batch_size"),
        (RuntimeError("std::bad_alloc"), "train.batch_size"),
        (RuntimeError("can't start new thread"), "no thread could be started"),
        (OSError(errno.ENOMEM, "Cannot allocate memory", "/cache/tiles.npy"), "train.batch_size"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "libraries do not fit"),
        (caused(RuntimeError("the writer failed"), MemoryError()), "train.batch_size"),
    ],
)  # fmt: skip
def test_short_memory_is_one_line_with_what_was_needed_and_is_free(error, says, pretrain_raises, capsys):
    pretrain_raises(error)
    code, _, err = call(capsys, *COMPLETE)
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith("sscl: out of memory: ")
    assert says in err[0]
    assert " are free " in err[0] or sys.platform != "linux"
    assert "tiles.npy" not in err[0]


@pytest.mark.parametrize(("card", "half"), [((6, 1), None), ((7, 5), "fp16"), ((8, 0), "bf16")])
def test_the_advice_on_memory_fits_the_card(card, half, pretrain_raises, with_cards, capsys):
    with_cards(card)
    pretrain_raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    code, _, err = call(capsys, *COMPLETE)
    assert (code, len(err)) == (2, 1)
    assert [name for name in ("bf16", "fp16") if name in err[0]] == ([] if half is None else [half])


def test_a_card_without_kernels_that_starts_all_the_same_is_named(pretrain_raises, with_cards, capsys):
    with_cards((6, 0), names=["Tesla P100"], built=["sm_75"])
    pretrain_raises(RuntimeError("CUDA error: no kernel image is available for execution on the device"))
    code, _, err = call(capsys, *COMPLETE)
    assert (code, len(err)) == (2, 1)
    assert all(word in err[0] for word in ("device: Tesla P100", "6.0", "torch==2.7.1"))


def test_a_lost_rank_is_one_line(pretrain_raises, monkeypatch, capsys):
    """Torch's error when another rank of torchrun has ended; in a single process the same error is our own bug."""
    pretrain_raises(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:29577\nmore"))
    with pytest.raises(RuntimeError, match="closed by peer"):
        cli.main(COMPLETE)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, _, err = call(capsys, *COMPLETE)
    assert code == 2
    (line,) = err
    assert line.startswith("sscl: rank 1: ")
    assert "train.timeout_minutes" in line
    assert "closed by peer" in line


def test_our_own_bugs_keep_their_traceback(pretrain_raises):
    pretrain_raises(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        cli.main(COMPLETE)


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from sscl.cli import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'pydantic', 'numpy', 'yaml', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    for words in (["--help"], ["--version"]):
        assert in_a_process("-c", program, *words).stderr == "0 []\n"
    # The probe can see: the help of a command needs its configuration.
    seen = in_a_process("-c", program, "pretrain", "--help").stderr
    assert "pydantic" in seen


def test_as_a_program(tmp_path):
    done = in_a_process("-m", "sscl", "pretrain", "train.epochs=0", "run=r", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
        ["sscl", "data.root"],
        ["sscl", "train.epochs"],
    ]


def test_a_reader_that_leaves_early_is_no_traceback():
    with subprocess.Popen(
        [sys.executable, "-m", "sscl", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [("> /dev/full", 2, ["standard output: cannot be written"]), ("2> /dev/full", 0, []), (">&- 2>&- <&-", 0, [])],
)
def test_a_full_or_closed_output_is_no_traceback(shell, code, said):
    command = f'"{sys.executable}" -m sscl --version {shell}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert [line.split(" (")[0] for line in done.stderr.splitlines()] == [f"sscl: {line}" for line in said]


def test_a_command_whose_reader_left_does_its_work(monkeypatch, runs_instead, capsys):
    done = []

    def work(config, **flags):
        print("begun", flush=True)
        print("more", flush=True)
        done.append(True)

    class Gone(io.StringIO):
        def flush(self):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    runs_instead("pretrain.main", work)
    monkeypatch.setattr(sys, "stdout", Gone())
    assert cli.main(COMPLETE) == 141
    assert done == [True]


def test_every_command_is_there():
    for command in cli.COMMANDS.values():
        module, _, function = command.function.partition(":")
        imported = importlib.import_module(module if "." in module else f"sscl.commands.{module}")
        assert callable(getattr(imported, function))


def test_help_is_a_word_too(capsys):
    assert cli.main(["train", "--help"]) == 0
    told = capsys.readouterr().out
    assert cli.main(["help", "train"]) == 0
    assert capsys.readouterr().out == told


def test_help_of_a_group_lists_its_commands(capsys):
    assert cli.main(["data", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "data synth" in printed
    assert "data inspect" in printed
    assert "pretrain " not in printed


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_output_that_the_terminal_has_no_letter_for_ends_nothing(errors, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
    with contextlib.redirect_stdout(terminal):
        assert cli.main(["data", "synth", "set β", "count=16", "size_px=32", "progress=false"]) == 0
    assert b"set ?" in terminal.buffer.getvalue()
    assert "\\u03b2" in capsys.readouterr().err
    assert (tmp_path / "set β/annotations.csv").is_file()


def test_a_user_without_a_home_is_one_line(tmp_path, monkeypatch):
    """As in a container under a user id that has no name there."""

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**30)
    monkeypatch.delenv("SSCL_CACHE", raising=False)
    with pytest.raises(ValueError, match="SSCL_CACHE"):
        cache_folder(None)
    assert cache_folder(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="no home folder"):
        cli.parse("eval", ["~/run"]).load()


def test_a_missing_run_or_set_names_the_word(capsys):
    for words, said in (
        (["eval"], "give RUN or checkpoint="),
        (["finetune", "run=r"], "give TILES or data.root="),
        (["predict", "tiles"], "give RUN TILES or paths="),
    ):
        code, _, err = call(capsys, *words)
        assert (code, len(err)) == (2, 1)
        assert said in err[0]


def test_dir_shows_what_is_imported_on_demand():
    import sscl

    assert {"load", "__version__"} <= set(dir(sscl))


def test_a_link_to_itself_is_named(capsys, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    code, _, err = call(capsys, "pretrain", f"data.root={tmp_path / 'loop'}", f"run={tmp_path / 'r'}", "device=cpu")
    assert code == 2
    assert len(err) == 1
    assert str(tmp_path / "loop") in err[0]


def test_a_working_folder_that_was_deleted_is_said(capsys, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, err = call(capsys, "train")
    assert (code, len(err)) == (2, 1)
    assert "working folder was deleted" in err[0]
