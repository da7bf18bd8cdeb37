"""log.wandb: what Weights & Biases is told. A stand-in for the package, whose service takes seconds to start."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sscl import metrics_log
from sscl.config import PretrainConfig, load_config
from sscl.metrics_log import MetricsLog, Wandb
from sscl.train.setup import wandb_of


class Unreached(Exception):
    """The service cannot be reached."""


@dataclass
class Service:
    """What `import wandb` gives.

    Attributes:
        begun: the arguments of each `init`. rows: that were logged. key: whether somebody has logged in.
        reached: whether the service answers. broken: whether it is gone later. finished: how many runs were.
    """

    key: bool = True
    reached: bool = True
    broken: bool = False
    begun: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    finished: int = 0

    errors = SimpleNamespace(Error=Unreached)
    Settings = staticmethod(lambda **given: given)

    def login(self, *, prompt: bool) -> bool:
        assert not prompt
        return self.key

    def init(self, **given: Any) -> Service:
        if given["mode"] == "online" and not self.reached:
            raise Unreached("no such host\nmore")
        self.begun.append(given)
        return self

    @property
    def offline(self) -> bool:
        return self.begun[-1]["mode"] == "offline"

    url = "https://here/run"

    def define_metric(self, name: str, *, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "epoch")

    def log(self, row: dict[str, float]) -> None:
        if self.broken:
            raise BrokenPipeError("the service is gone")
        self.rows.append(row)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    found = Service()
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found


def wanted(*words: str) -> Wandb:
    found = wandb_of(load_config(PretrainConfig, overrides=["run=runs/x", "data.root=d", "log.wandb=true", *words]))
    assert found is not None
    return found


def test_rows_go_to_one_run_with_resumption(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    log = MetricsLog(tmp_path / "a", wandb=wanted("log.wandb_project=colon"))
    log.append({"epoch": 1, "loss": 0.5})
    log.close()
    again = MetricsLog(tmp_path / "a", keep_epochs=1, wandb=wanted("log.wandb_project=colon"))
    again.append({"epoch": 2, "loss": 0.25})
    again.close()
    first, second = service.begun
    assert (first["project"], first["name"], first["mode"], first["resume"]) == ("colon", "a", "online", "allow")
    assert first["id"] == second["id"] != ""
    assert first["config"]["train"]["epochs"] == 100
    assert [row["epoch"] for row in service.rows] == [1, 2]
    assert service.finished == 2
    assert service.url in capsys.readouterr().out
    quiet = first["settings"]
    assert all(quiet[key] for key in ("x_disable_meta", "x_disable_machine_info", "disable_git"))
    assert (quiet["console"], quiet["save_code"]) == ("off", False)


@pytest.mark.parametrize(("words", "variable"), [(["log.wandb_mode=offline"], None), ([], "offline")])
def test_offline(
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    variable: str | None,
) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    service.key = False  # nobody needs one
    metrics_log.check_wandb(wanted(*words))
    MetricsLog(tmp_path, wandb=wanted("log.wandb_name=mine", *words)).close()
    assert (service.begun[0]["mode"], service.begun[0]["name"]) == ("offline", "mine")
    assert f"{tmp_path}/wandb" in capsys.readouterr().out


def test_a_service_that_is_not_there_costs_no_training(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.reached = False
    log = MetricsLog(tmp_path, wandb=wanted())
    assert service.begun[0]["mode"] == "offline"
    service.broken = True
    log.append({"epoch": 1, "loss": 0.5})
    log.append({"epoch": 2, "loss": 0.5})
    log.close()
    out = capsys.readouterr().out
    assert out.count("note: log.wandb: ") == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_without_the_package_or_a_key(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.key = False
    with pytest.raises(ValueError, match="wandb login"):
        metrics_log.check_wandb(wanted())
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'sscl\[wandb\]'"):
        metrics_log.check_wandb(wanted())
