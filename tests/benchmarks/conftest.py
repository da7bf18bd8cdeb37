"""The benchmarks are scripts, each of which imports its neighbours: their folder goes onto the path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "benchmarks"))


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that takes a script and `name=value`, and puts the value into the script."""

    def put(script: ModuleType, **values: object) -> None:
        for name, value in values.items():
            monkeypatch.setattr(script, name, value)

    return put
