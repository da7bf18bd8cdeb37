from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from sscl import __version__, cli
from sscl.commands import pretrain
from sscl.config import CompareConfig, PretrainConfig, load_config
from sscl.train.memory import advice

COMPLETE = ["pretrain", "run=r", "data.root=d"]


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, list[str]]:
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


@pytest.fixture
def pretrain_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Return a function that makes pretrain raise an error in place of training."""

    def arrange(error: BaseException) -> None:
        def fail(config: PretrainConfig, **flags: bool) -> None:
            raise error

        monkeypatch.setattr(pretrain, "main", fail)

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
        (["pretrain", "--config"], "--config", ""),
        (["pretrain", "--config", "none.yaml"], "--config", "none.yaml"),
        (["pretrain", "train.epochs"], "argument 'train.epochs'", "KEY=VALUE"),
        ([*COMPLETE, "train.epoch=1"], "train.epoch", "did you mean train.epochs?"),
        ([*COMPLETE, "--resume", "--overwrite"], "--resume", "--overwrite"),
        ([*COMPLETE, "--resume"], "r", "checkpoints/last.pt"),
        (["eval", "checkpoint=none"], "none", "no such run folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, key, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith(f"sscl: {key}")
    assert hint in err[0]
    assert list(tmp_path.iterdir()) == []


def test_each_fault_is_a_line(capsys):
    code, _, err = call(capsys, "pretrain")
    assert code == 2
    assert [line.split(": missing")[0] for line in err] == ["sscl: run", "sscl: data.root"]


def test_options_may_stand_anywhere(monkeypatch):
    seen = []
    monkeypatch.setattr(pretrain, "main", lambda config, **flags: seen.append((config.run, config.seed, flags)))
    assert cli.main(["pretrain", "run=a", "--overwrite", "data.root=d", "seed=3"]) == 0
    assert cli.main(["pretrain", "run=b", "data.root=d", "--resume"]) == 0
    assert seen == [("a", 3, {"resume": False, "overwrite": True}), ("b", 0, {"resume": True, "overwrite": False})]


def test_a_bare_word_is_the_positional_key_of_the_command_that_has_one():
    download, pretraining = cli.COMMANDS["data download"], cli.COMMANDS["pretrain"]
    assert cli.as_overrides(download, ["out=d", "pathmnist_64"]) == ["out=d", "name=pathmnist_64"]
    assert cli.as_overrides(download, ["name=a", "out=d"]) == ["name=a", "out=d"]
    assert cli.as_overrides(download, ["", "a", "b"]) == ["", "name=a", "b"]
    assert cli.as_overrides(pretraining, ["run=r", "a"]) == ["run=r", "a"]
    taking = [name for name, command in cli.COMMANDS.items() if command.positional]
    assert taking == ["configs", "data download", "compare", "report", "predict"]


def test_bare_words_are_the_list_of_a_command_that_takes_many():
    compare = cli.COMMANDS["compare"]
    words = ["runs/a", "out=o", "runs/b c", "7", "é"]
    assert cli.as_overrides(compare, words) == ['finished=["runs/a", "runs/b c", "7", "é"]', "out=o"]
    config = load_config(CompareConfig, overrides=cli.as_overrides(compare, words))
    assert (config.finished, config.out) == (("runs/a", "runs/b c", "7", "é"), "o")
    assert cli.as_overrides(compare, ["out=o"]) == ["out=o"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("data.root: empty"), 2, "sscl: data.root: empty"),
        (FileNotFoundError("no such run"), 2, "sscl: no such run"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), 2, "sscl: a.csv: No such file or directory"),
        (PermissionError(13, "Permission denied", "/r"), 2, "sscl: /r: Permission denied"),
        (NotADirectoryError(20, "Not a directory", "/r/x"), 2, "sscl: /r/x: Not a directory"),
        (OSError(28, "No space left on device"), 2, "sscl: [Errno 28] No space left on device"),
    ],
)
def test_what_a_command_raises(error, code, line, pretrain_raises, capsys):
    pretrain_raises(error)
    assert call(capsys, *COMPLETE) == (code, "", [line])


@pytest.mark.parametrize(
    ("words", "module", "advice"),
    [
        (COMPLETE, "pretrain", "--resume"),
        (["finetune", "run=r", "data.root=d"], "finetune", "--overwrite"),
        (["eval", "checkpoint=c"], "evaluate", "--overwrite"),
        (["data", "synth", "root=r"], "data", "nothing is written"),
        (["compare", "a", "b"], "compare", "reused"),
    ],
)
def test_after_ctrl_c_each_command_says_how_to_go_on(words, module, advice, monkeypatch, capsys):
    def interrupt(config, **flags):
        raise KeyboardInterrupt

    name = "synth" if module == "data" else "main"
    monkeypatch.setattr(f"sscl.commands.{module}.{name}", interrupt)
    code, _, (line,) = call(capsys, *words)
    assert (code, line.startswith("sscl: interrupted; ")) == (130, True)
    assert advice in line


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_out_of_memory_names_the_keys_to_lower(error, monkeypatch, capsys):
    def fail(config, **flags):
        raise error("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(pretrain, "main", fail)
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
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", ["out of memory", "train.microbatch"]),
    ],
)
def test_errors_of_the_libraries_are_one_line(message, says, pretrain_raises, capsys):
    pretrain_raises(RuntimeError(message))
    code, _, err = call(capsys, *COMPLETE)
    assert (code, len(err)) == (2, 1)
    assert all(word in err[0] for word in says), err[0]


@pytest.mark.parametrize(("card", "half"), [((6, 1), None), ((7, 5), "fp16"), ((8, 0), "bf16")])
def test_the_advice_on_memory_fits_the_card(card, half, pretrain_raises, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    pretrain_raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    code, _, err = call(capsys, *COMPLETE)
    assert (code, len(err)) == (2, 1)
    assert [name for name in ("bf16", "fp16") if name in err[0]] == ([] if half is None else [half])


def test_a_card_without_kernels_that_starts_all_the_same_is_named(pretrain_raises, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P100")
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


def test_every_command_is_there():
    for command in cli.COMMANDS.values():
        module, _, function = command.function.partition(":")
        imported = __import__(f"sscl.commands.{module}", fromlist=[function])
        assert callable(getattr(imported, function))


def test_help_of_a_group_lists_its_commands(capsys):
    assert cli.main(["data", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "data synth" in printed
    assert "data inspect" in printed
    assert "pretrain " not in printed
