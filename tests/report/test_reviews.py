"""Worksheets that come back: what is read from them, what is refused, and the numbers made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from sscl.data.worksheets import CANNOT_TELL, blind_name
from sscl.evaluate.predictions import TilePredictions
from sscl.report import reviewed
from sscl.report.reviews import NOBODY, Reviewed, read_reviews

from .conftest import rendered, tables

KEY = "0123456789abcdef"
HEADER = "report,reviewer,id,true,predicted,confidence,outcome,blind,blind_at,seen_before,review,note,changed"


def made(count: int = 60, *, classes: tuple[str, ...] = ("HP", "SSA"), groups: bool = False, seed: int = 0) -> Reviewed:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(classes)
    probabilities = rng.dirichlet(np.ones(len(classes)), count)
    found = TilePredictions(
        ids=tuple(f"=t{row}.png" if row == 0 else f"t{row}.png" for row in range(count)),
        classes=classes,
        labels=labels,
        predictions=np.where(rng.random(count) < 0.7, labels, probabilities.argmax(1)),
        probabilities=probabilities,
        losses=np.ones(count),
        groups=tuple(f"s{row // 4}" for row in range(count)) if groups else None,
    )
    return Reviewed(KEY, found)


def worksheet(path: Path, of: Reviewed, answers: dict[int, dict[str, str]], *, reviewer: str = "") -> str:
    """A worksheet as the page writes it; an id that a spreadsheet would compute is guarded."""
    lines = [HEADER]
    for row, name in enumerate(of.found.ids):
        given = {"report": KEY, "reviewer": reviewer, "id": f"'{name}" if name[0] == "=" else name} | answers.get(
            row, {}
        )
        lines.append(",".join(given.get(column, "") for column in HEADER.split(",")))
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    return str(path)


def test_names_of_a_blind_worksheet_are_read_back(tmp_path):
    of = made()
    name = blind_name(KEY, of.found.ids[5])
    assert of.found.ids[5] not in name
    path = tmp_path / "a.csv"
    path.write_text(f"id,blind\n{name},SSA\n{of.found.ids[6]},HP\n")
    (one,) = read_reviews([str(path)], of)
    assert {row: of.found.classes[one.blind[row]] for row in np.flatnonzero(one.blind != NOBODY)} == {5: "SSA", 6: "HP"}
    for other in (blind_name("another page", of.found.ids[5]), "blind-"):
        path.write_text(f"id,blind\n{other},SSA\n")
        with pytest.raises(ValueError, match="not among the 60 tiles"):
            read_reviews([str(path)], of)


def test_both_answers_are_read(tmp_path):
    of = made()
    given = {
        0: {"blind": "SSA", "seen_before": "no", "review": "disagree", "note": '"two\nlines, =x"'},
        1: {"blind": "hp", "seen_before": "yes", "review": "A"},
        2: {"blind": CANNOT_TELL, "review": "unsure"},
        3: {"note": "only a note"},
    }
    (one,) = read_reviews([worksheet(tmp_path / "a.csv", of, given, reviewer="A. B.")], of)

    assert one.reviewer == "A. B."
    assert np.flatnonzero(one.blind != NOBODY).tolist() == [0]
    assert (one.cannot_tell, one.not_blind) == (1, 1)
    assert one.after[:4].tolist() == [1, 0, 2, NOBODY]
    assert one.notes == {0: "two\nlines, =x", 3: "only a note"}


def test_worksheets_of_before_blind_review_and_of_spreadsheets(tmp_path):
    of = made()
    file = tmp_path / "old.csv"
    rows = "".join(
        f"{KEY};{name};x;y;0,5;z;{word};;\r\n" for name, word in zip(of.found.ids[1:], "adu" * 20, strict=False)
    )
    file.write_text("report;id;true;predicted;confidence;outcome;review;note;changed\r\n" + rows, encoding="utf-8")

    (one,) = read_reviews([str(file)], of)

    assert one.reviewer == "old"
    assert (one.after[1:4].tolist(), int((one.after != NOBODY).sum())) == ([0, 1, 2], 59)
    as_classes = one.after_as_classes(of.found)
    assert as_classes[1] == of.found.predictions[1]
    assert as_classes[2] == 1 - of.found.predictions[2]
    assert as_classes[3] == NOBODY
    assert (one.after_as_classes(made(classes=("a", "b", "c")).found) == NOBODY).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "a worksheet has id"),
        ("id,blind,blind\nt1.png,HP,HP\n", "comes twice"),
        ("id,blind\nt1.png,\n", "holds no answer"),
        ("id,blind\nt1.png,SAS\n", "did you mean SSA?"),
        ("id,review\nt1.png,perhaps\n", "line 2: review is 'perhaps'"),
        ("id,review\nnobody.png,agree\n", "'nobody.png' is not among the 60 tiles"),
        ("id,review\nt1.png,agree\nt1.png,agree\n", "line 3: 't1.png' comes twice"),
        ("report,id,review\nffff,t1.png,agree\n", "of other weights or tiles"),
        ("slide,id,review\na.svs,0_0,agree\n", "data.reviews=["),
        ("reviewer,id,review\nA,t1.png,agree\nB,t2.png,agree\n", "several reviewers, A, B"),
        ("id,review\nt1.png,agree,x\n", "line 2: 3 values"),
        ("\x00\x01", "NUL"),
    ],
)
def test_a_file_that_is_no_worksheet_is_one_line(tmp_path, text, said):
    file = tmp_path / "a.csv"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        read_reviews([str(file)], made())
    assert said in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_reviewers_are_told_apart_and_copies_are_refused(tmp_path):
    of = made()
    a, b = ({1: {"review": "agree"}}, {1: {"review": "unsure"}})
    (tmp_path / "x").mkdir()
    files = [worksheet(tmp_path / "a.csv", of, a, reviewer="N"), worksheet(tmp_path / "b.csv", of, b, reviewer="N")]
    assert [one.reviewer for one in read_reviews(files, of)] == ["a", "b"]
    files[1] = worksheet(tmp_path / "x/a.csv", of, b, reviewer="N")
    assert [one.reviewer for one in read_reviews(files, of)] == files
    with pytest.raises(ValueError, match="holds the same answers as"):
        read_reviews([files[0], worksheet(tmp_path / "copy.csv", of, a, reviewer="M")], of)


@pytest.mark.parametrize("groups", [False, True])
def test_the_page_has_kappa_with_labels_model_and_each_other(tmp_path, groups):
    of = made(groups=groups)
    rng = np.random.default_rng(3)
    said = {}
    files = []
    for name, wrong in (("A", 0.1), ("B", 0.3)):
        said[name] = np.where(rng.random(60) < wrong, 1 - of.found.labels, of.found.labels)
        answers = {
            row: {"blind": of.found.classes[said[name][row]], "review": "agree", "changed": name} for row in range(50)
        }
        files.append(worksheet(tmp_path / f"{name}.csv", of, answers))
    reviews = read_reviews(files, of)

    section = reviewed.reviews_section(reviews, of)

    rows = {tuple(row[:3]): row[3:] for row in tables(section)[reviewed.AGREEMENT]}
    expected = {
        ("A", "blind", "labels"): (said["A"], of.found.labels),
        ("B", "blind", "model"): (said["B"], of.found.predictions),
        ("A", "blind", "B"): (said["A"], said["B"]),
    }
    for key, (first, second) in expected.items():
        tiles, same, _, kappa, interval = rows[key]
        assert (tiles, same.split(" ")[0]) == ("50", str((first[:50] == second[:50]).sum()))
        assert float(kappa) == pytest.approx(cohen_kappa_score(first[:50], second[:50]), abs=0.006)
        low, high = map(float, interval.split(" to "))
        assert low < float(kappa) < high
    differed = int((said["A"][:50] != of.found.predictions[:50]).sum())
    after = tables(section)["After seeing the prediction"]
    assert after[0] == ["A", "50", "0", "0", f"{differed} of {differed} that differed"]
    (doubted,) = (found for title, found in tables(section).items() if title.startswith("Tiles to which"))
    both = (said["A"] == said["B"]) & (said["A"] != of.found.labels)
    assert {row[0] for row in doubted} == {of.found.ids[row] for row in np.flatnonzero(both[:50])}
    assert not section["folded"]
    assert "Reviews" in rendered(section)
    assert max(len(line) for text in reviewed.review_lines(reviews, of) for line in text.splitlines()) <= 80


def test_the_model_is_compared_with_the_labels_once_on_the_same_tiles(tmp_path):
    of = made()
    first, second = ({row: {"blind": name} for row in range(40)} for name in ("HP", "SSA"))
    files = [worksheet(tmp_path / "a.csv", of, first), worksheet(tmp_path / "b.csv", of, second)]
    rows = tables(reviewed.reviews_section(read_reviews(files, of), of))[reviewed.AGREEMENT]
    assert [row[:3] for row in rows].count(["model", "same", "labels"]) == 1


def test_names_and_notes_of_a_reviewer_stay_in_their_line(tmp_path):
    of = made()
    answers = {1: {"blind": "HP", "note": '"first\n\x1b[2Jsecond"'}}
    (one,) = read_reviews([worksheet(tmp_path / "a.csv", of, answers, reviewer="A\x1b[31mB")], of)
    assert one.reviewer == "A\\x1b[31mB"
    lines = "\n".join(reviewed.review_lines([one], of))
    assert "first [2Jsecond" in lines
    assert "\x1b" not in lines


def test_few_tiles_and_tiles_without_truth(tmp_path):
    of = made(classes=("a", "b", "c"))
    unknown = Reviewed(KEY, TilePredictions(**{**vars(of.found), "labels": np.full(60, -1)}))
    answers = {row: {"blind": "a", "review": "ad"[row % 2]} for row in range(12)}
    more = {row: {"blind": "b", "review": "a"} for row in range(12)}
    files = [worksheet(tmp_path / "x.csv", of, answers), worksheet(tmp_path / "y.csv", of, more)]

    section = reviewed.reviews_section(read_reviews(files, unknown), unknown)

    rows = {tuple(row[:3]): row[3:] for row in tables(section)[reviewed.AGREEMENT]}
    assert set(rows) == {
        ("x", "blind", "model"),
        ("y", "blind", "model"),
        ("x", "blind", "y"),
        ("x", "agree or not", "y"),
    }
    assert {row[3] for row in rows.values()} == {"too few tiles"}
