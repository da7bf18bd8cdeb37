"""predictions.csv as it is written and read."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sscl.data.tiles import Tiles
from sscl.evaluate.predictions import joined, predictions_of, read_predictions, write_predictions


def tiles_of(*, count: int = 30, groups: bool = False, votes: bool = False) -> tuple[Tiles, Any]:
    rng = np.random.default_rng(0)
    tiles = Tiles(
        images=np.zeros((count, 2, 2, 3), np.uint8),
        labels=rng.integers(0, 3, count),
        classes=("a", "b, c", "d"),
        ids=tuple(f"{i}.png" for i in range(count)),
        groups=np.array([f"slide {i // 5}" for i in range(count)]) if groups else None,
        votes=rng.integers(0, 8, count) if votes else None,
    )
    return tiles, rng.dirichlet((1, 1, 1), count)


@pytest.mark.parametrize("known", [True, False])
def test_predictions_that_are_written_are_read(known: bool, tmp_path: Path) -> None:
    tiles, probabilities = tiles_of(groups=known, votes=known)
    written = predictions_of(tiles, probabilities)
    assert (written.predictions == probabilities.argmax(1)).all()
    assert written.losses == pytest.approx(-np.log(probabilities[np.arange(30), tiles.labels]))
    write_predictions(tmp_path / "predictions.csv", written)
    found = read_predictions(tmp_path / "predictions.csv")
    assert (found.ids, found.classes, found.groups) == (written.ids, written.classes, written.groups)
    for name in ("labels", "predictions"):
        assert (getattr(found, name) == getattr(written, name)).all()
    assert found.probabilities == pytest.approx(probabilities, abs=5.1e-7)
    assert found.losses == pytest.approx(written.losses, rel=1e-5)
    assert (found.votes is None) == (not known)
    assert not known or (found.votes == tiles.votes).all()
    assert found.unlike(written) is None
    with (tmp_path / "predictions.csv").open(newline="") as handle:
        header = next(csv.reader(handle))
    columns = ["id", "label", "prediction", "probability_a", "probability_b, c", "probability_d", "loss"]
    assert header == columns + (["votes", "group"] if known else [])


def test_folds_are_joined_in_the_order_of_the_set_with_their_numbers(tmp_path: Path) -> None:
    tiles, probabilities = tiles_of(groups=True, votes=True)
    rows = np.random.default_rng(1).permutation(30)
    parts = [predictions_of(tiles.subset(part), probabilities[part]) for part in (rows[:11], rows[11:])]
    found = joined(parts, folds=[1, 2], order=tiles.ids)
    whole = predictions_of(tiles, probabilities)
    assert found.unlike(whole) is None
    assert (found.probabilities == probabilities).all()
    assert (found.votes == tiles.votes).all()
    assert (found.folds == np.where(np.isin(np.arange(30), rows[:11]), 1, 2)).all()
    write_predictions(tmp_path / "predictions.csv", found)
    assert (read_predictions(tmp_path / "predictions.csv").folds == found.folds).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ((",loss", ",los"), "'loss'"),
        (("y,b,b", "y,c,b"), "'c'"),
        (("0.75", "7.75"), "probability"),
        (("0.75", "-0.25"), "probability"),
        (("0.75", "nan"), "probability"),
        (("0.75", "1e400"), "line 2: probability"),
        (("0.5,0.5", "0.5,0.4"), "line 3: the probabilities add up to 0.9"),
        (("0.7\n", "inf\n"), "loss 'inf'"),
        (("y,b,b,", "y,b,b,0.1,"), "line 3: 7 values"),
        (("1.386", "1.386\0"), "line 2: has a NUL"),
        (("loss", "probability_b"), "'loss'"),
        (("x,a,b,0.75,0.25,1.386\ny,b,b,0.5,0.5,0.7\n", ""), "no rows"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    path = tmp_path / "predictions.csv"
    text = "id,label,prediction,probability_b,probability_a,loss\nx,a,b,0.75,0.25,1.386\ny,b,b,0.5,0.5,0.7\n"
    path.write_text(text)
    assert read_predictions(path).labels.tolist() == [1, 0]
    path.write_text(text.replace(*change))
    with pytest.raises(ValueError, match=r"predictions\.csv: ") as error:
        read_predictions(path)
    assert named in str(error.value)


@pytest.mark.parametrize("votes", ["9" * 5000, str(2**70), "-1", "nan", "1.0", ""])
def test_votes_are_whole_numbers(tmp_path: Path, votes: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(f"id,label,prediction,probability_a,probability_b,loss,votes\nx,a,b,0.25,0.75,1.386,{votes}\n")
    with pytest.raises(ValueError, match=r"predictions\.csv: line 2: votes ") as error:
        read_predictions(path)
    assert len(str(error.value)) < 300
