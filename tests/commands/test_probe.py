"""sscl probe through the command line, on three colours that any features tell apart and on tiny encoders."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sscl.config import EncoderConfig
from sscl.data.folder import load_folder
from sscl.data.split import label_fraction
from sscl.data.tiles import Tiles, place_store
from sscl.evaluate import lineage, probe_inputs
from sscl.evaluate.probe_tables import NOT_HERE
from sscl.models import batch_norm, features
from sscl.models.encoders import build_encoder
from sscl.models.start import Start, frozen_encoder
from sscl.words import width_of

COUNTS = {"train": {"benign": 24, "cancer": 16, "stroma": 12}, "test": {"benign": 10, "cancer": 8, "stroma": 6}}
TINY = ("device=cpu", "progress=false", "c_grid=[0.01, 1]", "shots=[1, 8]", "shot_draws=6")


def write_tiles(root: Path, counts: dict[str, dict[str, int]], *, size_px: int = 32) -> Path:
    """Noisy tiles whose class shifts one channel a little."""
    rng = np.random.default_rng(0)
    for part, classes in counts.items():
        for channel, (name, count) in enumerate(classes.items()):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (size_px, size_px, 3)) + rng.integers(0, 100, (1, 1, 3))
                pixels[..., channel] += 35
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}_{index}.png")
    return root


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("probe") / "colours", COUNTS)


@pytest.fixture
def probe(cli, colours: Path, tmp_path: Path, wrapped: Any) -> Callable[..., Any]:
    """Call `sscl probe` on the colours with a random encoder, and without charts, unless the call says otherwise."""

    def call(
        *words: str,
        encoders: str = "{name: r, model: timm:test_resnet}",
        sets: str = "",
        data: str = "",
        charts: bool = False,
    ) -> Any:
        sets = sets or f"{{name: colours, source: folder, root: {colours}, size_px: 32{data}}}"
        given = [f"out={tmp_path / 'out'}", f"encoders=[{encoders}]", f"sets=[{sets}]"]
        with wrapped(probe_charts=lambda draw, *made, **named: draw(*made, **named) if charts else []):
            return cli("probe", *given, f"cache_dir={tmp_path / 'cache'}", *TINY, *words)

    return call


@pytest.fixture
def forwards(wrap: Any) -> list[int]:
    """The numbers of tiles that features were computed of, one entry a call."""
    calls: list[int] = []

    def counted(compute: Any, model: Any, store: Any, rows: Any, **options: Any) -> torch.Tensor:
        calls.append(len(rows))
        return compute(model, store, rows, **options)

    wrap(outputs=counted)
    return calls


def report_of(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "probe.json").read_text())


def cached_parts(tmp_path: Path) -> dict[int, np.ndarray]:
    """Features in the cache by their number of tiles."""
    found = [np.load(file) for file in (tmp_path / "cache").glob("features-*.npy")]
    return {len(values): values for values in found}


def labels_of(part: str) -> np.ndarray:
    return np.repeat([0, 1, 2], list(COUNTS[part].values()))


def test_metrics_are_those_of_scikit_learn_on_the_same_features(probe, tmp_path):
    result = probe("c_grid=[0.1]", "neighbours=7")
    assert result.code == 0, result.err
    saved = cached_parts(tmp_path)
    x, y, queries, truth = saved[52].astype(float), labels_of("train"), saved[24].astype(float), labels_of("test")
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(x, y).predict(queries)
    knn = KNeighborsClassifier(7, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(x, y).predict(queries)
    runs = {entry["classifier"]: entry for entry in report_of(tmp_path)["runs"]}
    assert set(runs) == {"linear", "knn"}
    for name, predictions in (("linear", linear), ("knn", knn)):
        found = runs[name]["metrics"]
        assert found["accuracy"] == pytest.approx((predictions == truth).mean())
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predictions))
        assert found["macro_f1"] == pytest.approx(f1_score(truth, predictions, average="macro"))
        low, high = runs[name]["intervals"]["balanced_accuracy"]
        assert low < found["balanced_accuracy"] < high
    assert 0.4 < runs["linear"]["metrics"]["balanced_accuracy"] < 1
    assert runs["linear"]["c"] == 0.1
    assert runs["linear"]["labels"] == 52


def test_features_are_cached_by_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 255, (200, 16, 16, 3), dtype=np.uint8)
    rows = np.arange(10, 190, dtype=np.int64)

    def fingerprint(row: int) -> str:
        images = pixels.copy()
        images[row, 3, 3, 0] ^= 1
        tiles = Tiles(
            images=images, labels=np.zeros(200, dtype=np.int64), classes=("a",), ids=tuple(map(str, range(200)))
        )
        return probe_inputs.Part(tiles, rows).fingerprint

    assert len({fingerprint(row) for row in (10, 11, 100, 101, 189)}) == 5
    assert fingerprint(100) == fingerprint(100)


def test_table_files_and_charts(probe, tmp_path):
    encoders = (
        "{name: random, model: timm:test_resnet, seeds: [0, 1]}, "
        "{name: few, model: timm:test_resnet, seed: 5, images: 100}, "
        "{name: many, model: timm:test_resnet, seed: 6, images: 1000}"
    )
    result = probe(
        "fractions=[0.25, 1]", "reference=random", encoders=encoders, data=", holdout_fraction: 0.25", charts=True
    )
    assert result.code == 0, result.err
    out = tmp_path / "out"
    names = {"config.yaml", "env.json", "probe.json", "probe.md", "probe.png", "labels.png", "shots.png", "images.png"}
    assert {path.name for path in out.iterdir()} == names
    report = report_of(tmp_path)
    assert report["sets"][0]["tiles"] == {
        "train": {"benign": 18, "cancer": 12, "stroma": 9},
        "test": {"benign": 10, "cancer": 8, "stroma": 6},
        "held-out": {"benign": 6, "cancer": 4, "stroma": 3},
    }
    # 4 encoders x 2 parts x 2 fractions x 2 classifiers
    assert len(report["runs"]) == 32
    assert {entry["labels"] for entry in report["runs"]} == {39, 5 + 3 + 2}

    def balanced(encoder: str, seed: int) -> float:
        (found,) = [
            entry["metrics"]["balanced_accuracy"]
            for entry in report["runs"]
            if (entry["encoder"], entry["seed"], entry["part"], entry["fraction"], entry["classifier"])
            == (encoder, seed, "test", 1.0, "linear")
        ]
        return found

    def row(rows: list[dict[str, Any]], encoder: str) -> dict[str, Any]:
        place = {"encoder": encoder, "part": "test", "fraction": 1.0, "classifier": "linear"}
        (found,) = [row for row in rows if place.items() <= row.items()]
        return found

    random = row(report["summary"], "random")["balanced_accuracy"]
    both = [balanced("random", 0), balanced("random", 1)]
    assert both[0] != both[1]
    assert (random["mean"], random["sd"]) == (pytest.approx(np.mean(both)), pytest.approx(np.std(both, ddof=1)))
    assert random["values"] == both
    few = row(report["summary"], "few")["balanced_accuracy"]
    assert few["sd"] is None
    gain = row(report["differences"], "few")
    assert gain["pairs"] == 2  # the one seed meets both
    assert gain["balanced_accuracy"]["values"] == pytest.approx([balanced("few", 5) - value for value in both])
    assert not [row for row in report["differences"] if row["encoder"] == "random"]

    low, high = few["interval"]
    cell = f"{few['mean']:.3f} ({low:.3f} to {high:.3f})"
    text = "{mean:.3f} ± {sd:.3f} ({interval[0]:.3f} to {interval[1]:.3f})".format(**random)
    for content in (result.out, (out / "probe.md").read_text()):
        assert "colours, test: 25% of the training labels (10 tiles)" in content
        assert "colours, held-out: 100% of the training labels (39 tiles)" in content
        assert cell in content
        assert text in content
    lines = (out / "probe.md").read_text().splitlines()
    headers = [line for line in lines if line.startswith("| encoder")]
    assert headers[:2] == ["| encoder | linear | macro F1 | kNN | linear − random | kNN − random |"] * 2
    shots = "1 shot | 8 shots | robustness | linear − random | kNN − random | 8 shots − random |"
    assert headers[2:] == [f"| encoder | linear | macro F1 | kNN | {shots}"] * 2
    assert max(map(width_of, printed_tables(result.out))) <= 80


def printed_tables(out: str) -> list[str]:
    """The lines of tables that were printed."""
    return [line for line in out.splitlines() if "  " in line.strip()]


def test_simpleshot_and_robustness_with_differences(probe, tmp_path):
    """Of a set with slides; `stroma` has too few tiles for 16 shots."""
    csv = slides_csv(tmp_path)
    encoders = "{name: a, model: timm:test_resnet}, {name: b, model: timm:test_resnet, seed: 1}"
    words, options = ("reference=a", "shots=[1, 16]"), {"encoders": encoders, "data": f", groups_csv: {csv}"}
    result = probe(*words, **options)
    assert result.code == 0, result.err
    report = report_of(tmp_path)
    rows = {(row["encoder"], row["shots"]): row for row in report["few_shot"]}
    assert set(rows) == {("a", 1), ("b", 1), ("a", 16), ("b", 16)}
    assert rows["a", 16]["left_out"] == ["stroma"]
    assert rows["a", 1]["left_out"] == []
    saved = cached_parts(tmp_path)
    assert len(saved) == 2
    assert "SimpleShot with 16 shots leaves out stroma (12 training tiles)" in result.out
    gains = {row["shots"]: row["balanced_accuracy"] for row in report["few_shot_differences"]}
    for shots in (1, 16):
        means = [rows[name, shots]["balanced_accuracy"]["mean"] for name in "ba"]
        assert gains[shots]["mean"] == pytest.approx(means[0] - means[1])
    robust = {row["encoder"]: row for row in report["robustness"]}
    assert {row["confounder"] for row in robust.values()} == {"group"}
    assert {(row["tiles"], row["groups"]) for row in robust.values()} == {(76, 10)}
    (gain,) = report["robustness_differences"]
    assert gain["difference"] == pytest.approx(robust["b"]["index"] - robust["a"]["index"])
    first = report
    assert (
        probe("reference=a", "shots=[1, 16]", "--overwrite", encoders=encoders, data=f", groups_csv: {csv}").code == 0
    )
    assert report_of(tmp_path) == first


def slides_csv(tmp_path: Path) -> Path:
    """Slides that hold several classes each, of training or of test tiles."""
    names = [
        f"{part}/{name}/{name}_{index}.png"
        for part, classes in COUNTS.items()
        for name, count in classes.items()
        for index in range(count)
    ]
    csv = tmp_path / "slides.csv"
    csv.write_text("path,group\n" + "".join(f"{name},{name[:2]}{int(name[-5]) % 5}\n" for name in names))
    return csv


def test_published_weights_that_are_not_here_are_a_row_and_the_others_go_on(probe, tmp_path, wrap):
    def offline(*_: Any, **__: Any) -> Any:
        raise OfflineModeIsEnabled("offline mode is enabled")

    wrap(hub_file=offline)
    there = "{name: there, model: timm:test_resnet}"
    encoders = f"{{name: far, model: h0_mini, weights: published}}, {there}"
    result = probe("reference=far", encoders=encoders)
    assert result.code == 3
    report = report_of(tmp_path)
    (missing,) = report["missing"]
    assert missing["name"] == "far"
    assert missing["why"].startswith("encoders.0 (far): model.weights: ")
    assert "https://huggingface.co/bioptimus/H0-mini" in missing["why"]
    assert {row["encoder"] for row in report["summary"]} == {"there"}
    assert report["differences"] == []
    assert f"far      {NOT_HERE}" in result.out
    assert f"note: {missing['why']}" in result.out
    assert "no differences" in result.out
    assert f"| far | {NOT_HERE} |" in (tmp_path / "out" / "probe.md").read_text()
    assert "next: " not in result.out  # random weights are no start
    result = probe("--overwrite", encoders="{name: far, model: h0_mini, weights: published}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert report_of(tmp_path) == report


def test_without_slides_robustness_says_that_it_is_unknown(probe, tmp_path):
    result = probe("shots=[]")
    assert result.code == 0, result.err
    assert "robustness on colours: unknown, no slides" in result.out
    report = report_of(tmp_path)
    assert (report["robustness"], report["few_shot"]) == ([], [])
    (unknown,) = report["robustness_unknown"]
    assert unknown["set"] == "colours"
    assert "unknown" in (tmp_path / "out" / "probe.md").read_text()


def test_the_second_run_computes_no_features(probe, forwards, tmp_path):
    assert probe().code == 0
    assert sorted(forwards) == [24, 52]
    first = report_of(tmp_path)
    forwards.clear()
    assert probe("--overwrite").code == 0
    assert forwards == []
    assert report_of(tmp_path) == first
    # Another seed of the weights, another size, or adapted statistics are other features.
    for changed in ("seed: 1", "size_px: 24", "adapt_batch_norm: true", "mean: [0.4, 0.5, 0.5]"):
        assert probe("--overwrite", encoders=f"{{name: r, model: timm:test_resnet, {changed}}}").code == 0
        assert sorted(forwards) == [24, 52], changed
        forwards.clear()
    assert probe("--overwrite", "precision=bf16").code == 0
    assert sorted(forwards) == [24, 52]


def test_the_fingerprint_of_an_encoder_holds_all_that_features_depend_on():
    coarse, fine = (build_encoder("resnet18", output_stride=stride) for stride in (32, 16))
    fine.load_state_dict(coarse.state_dict())
    same = [(net, mean, 0.2) for net, mean in ((coarse, 0.5), (fine, 0.5), (coarse, 0.4))]
    found = [
        Start(encoder=net, mean=(mean,) * 3, std=(std,) * 3).fingerprint
        for net, mean, std in (*same, (coarse, 0.5, 0.3))
    ]
    coarse.bn1.running_var[3] += 1
    found.append(Start(encoder=coarse, mean=(0.5,) * 3, std=(0.2,) * 3).fingerprint)
    assert len(set(found)) == 5


def test_fractions_and_seeds_arrive_where_tiles_are_drawn(probe, wrap):
    asked: dict[str, list[tuple[float, int]]] = {"labels": [], "held out": [], "validation": []}

    def spy(what: str) -> Callable[..., Any]:
        def called(real: Any, labels: Any, *, fraction: float, seed: int, **named: Any) -> Any:
            asked[what].append((fraction, seed))
            return real(labels, fraction=fraction, seed=seed, **named)

        return called

    wrap(label_fraction=spy("labels"), stratified_split=spy("held out"), validation_folds=spy("validation"))
    words = ("fractions=[0.5]", "label_seeds=[3]", "validation_fraction=0.4")
    assert probe(*words, data=", holdout_fraction: 0.25, split_seed: 5").code == 0
    assert asked == {"labels": [(0.5, 3)], "held out": [(0.25, 5)], "validation": [(0.4, 3)]}


def test_features_are_those_of_the_encoder_at_its_own_size(probe, tmp_path, colours):
    assert probe(encoders="{name: r, model: timm:test_resnet, seed: 3, size_px: 24, mean: [0.5, 0.5, 0.5]}").code == 0
    start = frozen_encoder(EncoderConfig(model="timm:test_resnet", seed=3, mean=(0.5, 0.5, 0.5)))
    tile = Image.open(colours / "test" / "benign" / "benign_0.png").resize((24, 24), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.asarray(tile) / 255).float().permute(2, 0, 1)[None]
    x = (x - torch.tensor(start.mean)[:, None, None]) / torch.tensor(start.std)[:, None, None]
    with torch.no_grad():
        expected = start.encoder(x)[0].numpy()
    np.testing.assert_allclose(cached_parts(tmp_path)[24][0], expected, rtol=1e-3, atol=1e-4)


def test_adapted_statistics_are_those_of_each_part(probe, tmp_path, colours):
    assert probe(encoders="{name: r, model: timm:test_resnet, adapt_batch_norm: true}").code == 0
    adapted = cached_parts(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    assert probe("--overwrite").code == 0
    plain = cached_parts(tmp_path)
    for count in (52, 24):
        assert not np.allclose(adapted[count], plain[count], rtol=0.1)
    start = frozen_encoder(EncoderConfig(model="timm:test_resnet"))
    given = {"mean": torch.tensor(start.mean), "std": torch.tensor(start.std)}
    for part, count in (("train", 52), ("test", 24)):
        images = load_folder(colours, split=part, size_px=32, cache_dir=tmp_path / "cache").images
        store, rows = place_store(images, device="cpu", budget_gb=1), np.arange(count)
        expected = features.outputs(
            batch_norm.adapt_batch_norm(start.encoder, store, rows, **given), store, rows, **given
        )
        np.testing.assert_allclose(adapted[count], expected, rtol=1e-3, atol=1e-4)
    (note,) = [n for n in run_notes(probe, "adapt_batch_norm: true") if n.startswith("r: batch-norm")]
    assert "transductive" in note


def run_notes(probe: Any, extra: str) -> list[str]:
    result = probe("--overwrite", encoders=f"{{name: r, model: timm:test_resnet, {extra}}}")
    assert result.code == 0, result.err
    return [line.removeprefix("note: ") for line in result.out.splitlines() if line.startswith("note: ")]


def test_seeds_take_their_place_in_the_weights(probe, pretrained, tmp_path):
    for seed in (3, 4):
        shutil.copytree(pretrained, tmp_path / f"run-{seed}")
    result = probe(encoders=f"{{name: ours, weights: '{tmp_path}/run-{{seed}}', seeds: [3, 4]}}")
    assert result.code == 0, result.err
    told = report_of(tmp_path)["encoders"]
    assert [(row["seed"], row["weights"]) for row in told] == [(s, f"{tmp_path}/run-{s}") for s in (3, 4)]
    assert told[0]["fingerprint"] == told[1]["fingerprint"]  # copies of one run
    assert told[0]["size_px"] == 32
    result = probe("--overwrite", encoders=f"{{name: ours, weights: '{tmp_path}/run-{{seed}}', seeds: [3, 5]}}")
    assert result.code == 2
    assert result.err.startswith(f"sscl: encoders.0 (ours): {tmp_path}/run-5: ")
    assert result.err.count("\n") == 1


class TestLineage:
    def words(self, root: Path, more: str = "") -> str:
        return f"{{name: polyps, source: synthetic, root: {root}, size_px: 32{more}}}"

    def notes(self, result: Any) -> str:
        assert result.code == 0, result.err
        return "\n".join(line for line in result.out.splitlines() if line.startswith("note: "))

    def test_training_tiles_without_labels_and_with(self, probe, cli, tiles, finetuned):
        same = f"{{name: polyps, source: mhist, published: false, root: {tiles}, size_px: 32, holdout_fraction: 0.3}}"
        found = self.notes(probe(encoders=f"{{name: ours, weights: {finetuned}}}", sets=same))
        seen = "note: ours was trained on the training tiles of polyps"
        assert f"{seen} without labels, its held-out tiles among them" in found
        assert f"{seen} with their labels, its held-out tiles among them" in found
        assert "WARNING" not in found

    def test_another_split_is_a_loud_warning(self, probe, tiles, pretrained):
        found = self.notes(
            probe(encoders=f"{{name: ours, weights: {pretrained}}}", sets=self.words(tiles, ", split_seed: 7"))
        )
        assert re.search(r"note: WARNING: ours was trained on polyps under another split \(.*data.split_seed", found)

    def test_a_folder_above_the_set_is_a_loud_warning(self, probe, tiles, colours, pretrained, tmp_path):
        content = torch.load(pretrained / "checkpoints" / "last.pt", weights_only=True)
        (section,) = content["config"]["data"]
        section["root"] = str(colours.parent)
        torch.save(content, tmp_path / "above.pt")
        found = self.notes(probe(encoders=f"{{name: ours, weights: {tmp_path / 'above.pt'}}}"))
        assert f"note: WARNING: ours was trained on {colours.parent}, which overlaps colours" in found
        section["root"] = str(colours / "train")
        torch.save(content, tmp_path / "above.pt")
        found = self.notes(probe("--overwrite", encoders=f"{{name: ours, weights: {tmp_path / 'above.pt'}}}"))
        assert "ours was trained on the training tiles of colours without labels" in found
        assert "WARNING" not in found

    def test_another_set_is_not_mentioned(self, probe, pretrained):
        assert "trained on" not in self.notes(probe(encoders=f"{{name: ours, weights: {pretrained}}}"))


def test_groups_keep_slides_together_and_resample_whole(probe, cli, tmp_path, colours, wrap):
    sides: list[tuple[set[str], set[str]]] = []

    def spy(divide: Any, labels: Any, *, groups: Any, **named: Any) -> Any:
        rest, held = divide(labels, groups=groups, **named)
        sides.append((set(groups[rest]), set(groups[held])))
        return rest, held

    wrap(stratified_split=spy)
    lines = ["path,group"]
    for part in COUNTS:
        for file in sorted((colours / part).rglob("*.png")):
            number = int(file.stem.split("_")[1])
            lines.append(f"{file.relative_to(colours).as_posix()},{part}{number % 4}")
    (tmp_path / "groups.csv").write_text("\n".join(lines) + "\n")
    result = probe(
        "reference=a",
        encoders="{name: a, model: timm:test_resnet}, {name: b, model: timm:test_resnet, seed: 1}",
        data=f", groups_csv: {tmp_path / 'groups.csv'}, holdout_fraction: 0.25",
    )
    assert result.code == 0, result.err
    report = report_of(tmp_path)
    assert sum(report["sets"][0]["tiles"]["held-out"].values()) == 13  # one slide of four
    assert [(len(rest), len(held), rest & held) for rest, held in sides] == [(3, 1, set())]
    assert {entry["validation"] for entry in report["runs"] if entry["classifier"] == "linear"} == {"carved by group"}
    assert lineage.NO_SLIDE_IDS not in result.out
    assert "note: colours, test: too few slides for intervals: 4" in result.out


def test_a_set_with_validation_of_its_own_chooses_c_there(probe, forwards, tmp_path, wrap):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 60), ("val", 40), ("test", 30)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 150, (count, 28, 28, 3))
        images[np.arange(count), :, :, labels] += 25
        arrays |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": labels[:, None].astype(np.uint8)}
    np.savez(tmp_path / "set.npz", **arrays)
    asked, banks = [], []
    wrap(
        label_fraction=lambda draw, labels, **named: (
            asked.append((len(labels), named["fraction"])) or draw(labels, **named)
        ),
        knn=lambda vote, bank, *rest, **named: banks.append(len(bank)) or vote(bank, *rest, **named),
    )
    words = f"{{name: med, source: pathmnist, root: {tmp_path / 'set.npz'}, size_px: 28}}"
    result = probe("fractions=[0.5]", sets=words)
    assert result.code == 0, result.err
    assert sorted(forwards) == [30, 40, 60]
    assert asked == [(60, 0.5), (40, 0.5)]  # of both parts' labels as few
    assert banks == [30]  # nor has the kNN more of them
    (linear,) = [entry for entry in report_of(tmp_path)["runs"] if entry["classifier"] == "linear"]
    assert (linear["validation"], linear["labels"]) == ("the set's own", 30)
    saved = cached_parts(tmp_path)
    x, y = saved[60].astype(float), np.arange(60) % 3
    used = label_fraction(y, fraction=0.5, seed=0)
    ours = make_pipeline(StandardScaler(), LogisticRegression(C=linear["c"], max_iter=1000)).fit(x[used], y[used])
    predicted = ours.predict(saved[30].astype(float))
    assert linear["metrics"]["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(np.arange(30) % 3, predicted)
    )


def test_unlabelled_tiles_are_left_out_and_counted(probe, forwards, wrap):
    def half_labelled(load: Any, data: Any, **words: Any) -> Any:
        tiles = load(data, **words)
        tiles.labels[::13] = -1
        return tiles

    wrap(probe_tiles=half_labelled)
    result = probe()
    assert result.code == 0, result.err
    assert "tiles: 48 train, 22 test; 6 tiles without a label left out" in result.out
    assert "note: colours: 6 tiles without a label left out" in result.out
    assert sorted(forwards) == [22, 48]


def test_unconverged_fits_are_one_note(probe, recwarn):
    result = probe("max_iterations=2")
    assert result.code == 0, result.err
    assert len(re.findall(r"note: \d of 3 linear fits stopped at max_iterations=2 before", result.out)) == 1
    assert not [warning for warning in recwarn if "onverge" in str(warning.message)]


class TestFaults:
    """Every fault is one line, before any features are computed and before the folder is made."""

    @pytest.fixture(autouse=True)
    def nothing_happens(self, forwards, tmp_path):
        yield
        assert forwards == []
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("encoders", "message"),
        [
            ("{name: a, model: resnet19}", r"encoders\.0\.model: .*resnet18"),
            (
                "{name: a, model: timm:test_resnet, weigths: x}",
                r"encoders\.0\.weigths: unknown key; did you mean encoders\.0\.w",
            ),
            ("{model: timm:test_resnet}", r"encoders\.0\.name: missing"),
            (
                "{name: a, model: timm:test_resnet}, {name: a, model: resnet34}",
                r"encoders: several of them have the name 'a'",
            ),
            ("{name: a, weights: nowhere}", r"encoders\.0 \(a\): nowhere: no such run folder or checkpoint file"),
            ("{name: a}", r"encoders\.0 \(a\): model: missing"),
            ("", r"encoders: is empty; name at least 1"),
            ("{name: a, weights: x, seeds: [0, 1]}", r"encoders\.0\.weights: .*\{seed\}.*\[0, 1\].* got 'x'"),
            (
                "{name: a, model: timm:test_resnet, seeds: [1, 1]}",
                r"encoders\.0\.seeds: must be different integers",
            ),
        ],
    )
    def test_encoders(self, probe, encoders, message):
        result = probe(encoders=encoders)
        assert result.code == 2
        assert re.match(f"sscl: {message}", result.err), result.err
        assert len(result.err.splitlines()) == 1

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("reference=rr", r"reference: no encoder has the name 'rr'; did you mean r\?"),
            ("fractions=[0, 1]", r"fractions\.0: must be > 0 and <= 1, got 0"),
            ("fractions=[1, 1]", r"fractions: .*different.*got"),
            ("label_seeds=[]", r"label_seeds: must be one or more different numbers, got \[\]"),
            ("c_grid=[-1]", r"c_grid\.0: must be >= 1e-10 and <= 1e\+10, got -1"),
            ("neighbors=3", r"neighbors: unknown key; did you mean neighbours\?"),
            ("validation_fraction=1", r"validation_fraction: must be > 0 and < 1, got 1"),
        ],
    )
    def test_keys(self, probe, word, message):
        result = probe(word)
        assert result.code == 2
        assert re.match(f"sscl: {message}", result.err), result.err

    def test_a_class_of_test_that_train_lacks(self, probe, colours, wrap):
        def without_stroma(load: Any, data: Any, *, split: str, **words: Any) -> Any:
            tiles = load(data, split=split, **words)
            return tiles.subset(np.flatnonzero(tiles.labels != 2)) if split == "train" else tiles

        wrap(probe_tiles=without_stroma)
        result = probe()
        assert result.code == 2
        assert result.err.startswith(f"sscl: sets.0 (colours): {colours}: ")
        assert result.err.count("\n") == 1
        assert all(words in result.err for words in ("stroma", "test", "train"))

    def test_unlabelled_tiles(self, probe, colours, tmp_path):
        flat = tmp_path / "flat"
        shutil.copytree(colours / "train" / "benign", flat)
        result = probe(sets=f"{{name: flat, source: folder, root: {flat}, size_px: 32}}")
        assert result.code == 2
        assert result.err.startswith(f"sscl: sets.0.root: {flat} has no labels;")

    def test_one_class(self, probe, tmp_path):
        root = write_tiles(tmp_path / "one", {"train": {"benign": 3}, "test": {"benign": 2}})
        result = probe(sets=f"{{name: one, source: folder, root: {root}, size_px: 32}}")
        assert result.code == 2
        assert "sets.0" in result.err
        assert "one class (benign)" in result.err

    def test_no_such_root(self, probe):
        result = probe(sets="{name: gone, source: folder, root: nowhere}")
        assert result.code == 2
        assert result.err.startswith("sscl: sets.0.root: nowhere: no such folder")
        assert result.err.count("\n") == 1

    def test_a_second_set_that_is_broken_is_seen_before_the_first_is_computed(self, probe, colours):
        good = f"{{name: good, source: folder, root: {colours}, size_px: 32}}"
        result = probe(sets=f"{good}, {{name: gone, source: folder, root: nowhere}}")
        assert result.code == 2
        assert "sets.1.root" in result.err

    def test_seeds_that_do_not_pair(self, probe):
        encoders = (
            "{name: a, model: timm:test_resnet, seeds: [0, 1]}, {name: b, model: timm:test_resnet, seeds: [2, 3]}"
        )
        result = probe("reference=a", encoders=encoders)
        assert result.code == 2
        assert "sscl: reference: a has the seeds [0, 1] and b has [2, 3]; pairs need the same seeds" in result.err


def test_an_encoder_that_diverged_is_named(probe, tmp_path, pretrained):
    content = torch.load(pretrained / "checkpoints" / "last.pt", weights_only=True)
    content["encoder"]["net.bn1.running_mean"].fill_(float("nan"))
    torch.save(content, tmp_path / "broken.pt")
    result = probe(encoders=f"{{name: broken, weights: {tmp_path / 'broken.pt'}}}")
    assert result.code == 2
    assert all(word in result.err for word in ("encoders.0", "broken", "bn1.running_mean", "NaN"))
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "cache").glob("features-*")) == []


def test_an_existing_folder_is_not_replaced(probe, tmp_path, snapshot, forwards):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    before = snapshot(tmp_path / "out")
    for flags in ((), ("--overwrite",)):
        result = probe(*flags)
        assert result.code == 2
        assert str(tmp_path / "out") in result.err
        assert snapshot(tmp_path / "out") == before
    assert forwards == []


def test_the_set_may_not_lie_in_the_folder_to_write(probe, colours, cli, forwards):
    words = [f"out={colours}", "encoders=[{name: r, model: timm:test_resnet}]", *TINY, "--overwrite"]
    result = cli("probe", *words, f"sets=[{{name: c, source: folder, root: {colours}}}]")
    assert result.code == 2
    assert (colours / "train").is_dir()
    assert forwards == []
