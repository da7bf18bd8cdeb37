"""The tables of a probe."""

from __future__ import annotations

from typing import Any

from sscl.evaluate.probe_results import Gain, OverRuns, Summary
from sscl.evaluate.probe_tables import probe_tables
from sscl.evaluate.tables import as_markdown


def over(mean: float) -> OverRuns:
    return OverRuns(mean=mean, sd=None, interval=(mean - 0.01, mean + 0.02), values=(mean,))


def test_tables_have_each_metric_in_its_column() -> None:
    place: dict[str, Any] = {"set": "s", "part": "test", "fraction": 0.1}
    linear = {"balanced_accuracy": over(0.7), "macro_f1": over(0.6), "accuracy": over(0.5)}
    knn = {"balanced_accuracy": over(0.4), "macro_f1": over(0.3), "accuracy": over(0.2)}
    summary = [
        Summary(encoder=encoder, **place, classifier=classifier, labels=1200, runs=1, **found)
        for encoder in ("ours|1", "random")
        for classifier, found in (("linear", linear), ("knn", knn))
    ]
    gains = [
        Gain(
            encoder="ours|1",
            reference="random",
            **place,
            classifier=classifier,
            pairs=1,
            **{**linear, "balanced_accuracy": over(gained)},
        )
        for classifier, gained in (("linear", 0.25), ("knn", 0.15))
    ]
    (table,) = probe_tables(summary, gains, reference="random")
    assert "s: 10%" in table.title
    assert "1,200 tiles" in table.title
    header, *rows = table.lines
    assert header == ["encoder", "test: linear", "macro F1", "kNN", "linear − random"]
    shown = ["0.700 (0.690 to 0.720)", "0.600", "0.400"]
    assert rows == [["ours|1", *shown, "+0.250 (+0.240 to +0.270)"], ["random", *shown, ""]]
    assert len({line.replace(r"\|", "").count("|") for line in as_markdown(table.lines).splitlines()}) == 1
