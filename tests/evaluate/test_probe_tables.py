"""The tables of a probe."""

from __future__ import annotations

from typing import Any

from sscl.evaluate.probe_report import MissingEncoder, ProbeResults, UnknownRobustness
from sscl.evaluate.probe_results import Gain, OverRuns, Summary
from sscl.evaluate.probe_shots import FewShot, FewShotGain
from sscl.evaluate.probe_tables import in_columns, legend, probe_tables, robustness_legend
from sscl.evaluate.robustness import Robustness, RobustnessGain
from sscl.evaluate.tables import as_markdown
from sscl.words import width_of


def over(mean: float) -> OverRuns:
    return OverRuns(mean=mean, sd=None, interval=(mean - 0.01, mean + 0.02), values=(mean,))


def results(**more: Any) -> ProbeResults:
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
    shots = [
        FewShot(encoder=encoder, set="s", part="test", shots=number, draws=100, left_out=(), **of_shots(number / 100))
        for encoder in ("ours|1", "random")
        for number in (1, 16)
    ]
    gained = FewShotGain(
        encoder="ours|1", reference="random", set="s", part="test", shots=16, draws=100, **of_shots(0.05)
    )
    robust = [
        Robustness(
            encoder=encoder,
            set="s",
            confounder="site",
            neighbours=20,
            tiles=50,
            groups=9,
            index=index,
            values=(index,),
            interval=None if encoder == "random" else (0.8, 0.95),
            chance=0.5,
        )
        for encoder, index in (("ours|1", 0.9), ("random", 0.6))
    ]
    higher = RobustnessGain(encoder="ours|1", reference="random", set="s", difference=0.3, interval=(0.1, 0.4))
    found = ProbeResults(
        summary=tuple(summary),
        differences=tuple(gains),
        few_shot=tuple(shots),
        few_shot_differences=(gained,),
        robustness=tuple(robust),
        robustness_differences=(higher,),
    )
    return found.model_copy(update=more)


def of_shots(mean: float) -> dict[str, OverRuns]:
    value = OverRuns(mean=mean, sd=0.1, values=(mean,), interval=(mean - 0.02, mean + 0.03))
    return dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), value)


def test_tables_have_each_metric_in_its_column() -> None:
    (table,) = probe_tables(results(), reference="random")
    assert table.title == "s, test: 10% of the training labels (1,200 tiles)"
    header, *rows = table.lines
    assert header[:7] == ["encoder", "linear", "macro F1", "kNN", "1 shot", "16 shots", "robustness"]
    assert header[7:] == ["linear − random", "kNN − random", "16 shots − random", "robustness − random"]
    shown = ["0.700 (0.690 to 0.720)", "0.600", "0.400 (0.390 to 0.420)", "0.010", "0.160 (0.140 to 0.190)"]
    gains = ["+0.250 (+0.240 to +0.270)", "+0.150 (+0.140 to +0.170)", "+0.050 (+0.030 to +0.080)"]
    assert rows[0] == ["ours|1", *shown, "0.900 (0.800 to 0.950)", *gains, "+0.300 (+0.100 to +0.400)"]
    assert rows[1] == ["random", *shown, "0.600", "", "", "", ""]
    assert len({line.replace(r"\|", "").count("|") for line in as_markdown(table.lines).splitlines()}) == 1
    (alone,) = probe_tables(results(), reference=None)
    assert alone.lines[0] == header[:7]


def test_the_terminal_has_columns_below_each_other_and_missing_encoders_once() -> None:
    missing = (MissingEncoder(name="uni2_h", why="accept the terms"),)
    (table,) = probe_tables(results(missing=missing), reference="random")
    assert len(table.lines) == 4
    assert len({len(row) for row in table.lines}) == 1
    text = in_columns(table)
    assert max(map(width_of, text.splitlines())) <= 80
    assert text.count("uni2_h") == 1
    assert "uni2_h   weights are not on this disk" in text
    for column in ("linear", "16 shots", "robustness − random", "+0.300 (+0.100 to +0.400)"):
        assert column in text


def test_the_legend_explains_a_missing_interval() -> None:
    given = [line for line in legend(results(), neighbours=20, reference=None) if "without brackets" in line]
    assert given  # random's robustness has none
    whole = tuple(row for row in results().robustness if row.interval is not None)
    assert not [
        line for line in legend(results(robustness=whole), neighbours=20, reference=None) if "without brackets" in line
    ]


def test_the_legend_says_what_robustness_is_and_where_it_is_unknown() -> None:
    (line,) = robustness_legend(results())
    assert "the share with the class; random neighbours give 0.500" in line
    assert "or the site" in line
    unknown = (UnknownRobustness(set="t", why="no slides are known"),)
    assert robustness_legend(results(robustness_unknown=unknown))[1:] == [
        "robustness on t: unknown, no slides are known"
    ]
