"""sscl pretrain on several sources: whose tiles a run sees and how often, its losses, resumption, and refusals."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from npz_files import write_npz
from sscl import augment
from sscl.config import PretrainConfig, load_config
from sscl.data import sources
from sscl.data.tiles import Tiles
from sscl.draws import Augmentation
from sscl.train.health import carve_health
from sscl.train.step import ViewProjections, Views, similarities

Entry = dict[str, Any]


def data(*sources: Entry) -> str:
    """The key on the command line; the first source says how large all tiles are."""
    first, *others = sources
    return f"data={json.dumps([{'size_px': 32, 'published': False, **first}, *others])}"


def config(*sources: Entry, **sections: Any) -> PretrainConfig:
    return PretrainConfig.model_validate({"run": "run", "data": [{"size_px": 32, **s} for s in sources], **sections})


def assert_refused(result: Any, *words: str) -> None:
    assert result.code == 2, result
    assert result.err.startswith("sscl: ")
    assert result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err
    assert "Traceback" not in result.out + result.err


@pytest.fixture(scope="module")
def polyps2(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same file names as `tiles`, elsewhere."""
    return Path(shutil.copytree(tiles, tmp_path_factory.mktemp("more") / "polyps2"))


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 tiles of 48 px without labels: red left of blue, in shades."""
    root = tmp_path_factory.mktemp("flat") / "slides.2024"
    root.mkdir()
    for index in range(12):
        pixels = np.zeros((48, 48, 3), dtype=np.uint8)
        pixels[:, :24, 0] = 100 + 10 * index
        pixels[:, 24:, 2] = 100 + 10 * index
        Image.fromarray(pixels).save(root / f"tile_{index:02}.png")
    return root


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of MedMNIST's layout with 6 training tiles of 28 px."""
    path = tmp_path_factory.mktemp("npz") / "nuclei.npz"
    rng = np.random.default_rng(0)
    parts = {
        name: (rng.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8), np.arange(count) % 2, None)
        for name, count in (("train", 6), ("val", 2), ("test", 2))
    }
    write_npz(path, parts, classes=["a", "b"])
    return path


# --- a run on all kinds of sources ---


@dataclass
class Seen:
    """What a run was made of, by step."""

    run: Path
    out: str
    rows: list[list[int]] = field(default_factory=list)
    projections: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    views: list[tuple[list[int], list[int]]] = field(default_factory=list)  # tiles and their views


@pytest.fixture(scope="module")
def seen(
    cli: Any,
    wrapped: Any,
    tiles: Path,
    folder3: Path,
    polyps2: Path,
    npz: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Seen:
    """One epoch on MHIST's layout, an image folder, synthetic tiles and an npz file, the last drawn from three times as
    often as each of the others.
    """
    sources = data(
        {"source": "mhist", "root": str(tiles), "weight": 1},
        {"source": "folder", "root": str(folder3), "tiles": 8, "weight": 1},
        {"source": "synthetic", "root": str(polyps2), "tiles": 8, "weight": 1},
        {"source": "pathmnist", "root": str(npz), "weight": 3},
    )
    seen = Seen(run=tmp_path_factory.mktemp("runs") / "all", out="")

    def spy_project(project: Any, self: Any, images: torch.Tensor, drawn: Any) -> Any:
        a, b = project(self, images, drawn)
        seen.projections.append((a.detach(), b.detach()))
        return a, b

    def spy_draw(draw: Any, self: Any, rows: torch.Tensor, number: torch.Tensor, **named: Any) -> Any:
        seen.rows.extend(rows.tolist())
        seen.views.extend(zip(rows.tolist(), number.tolist(), strict=True))
        return draw(self, rows, number, **named)

    with wrapped(pretrain_projections=spy_project, views=spy_draw):
        result = cli.pretrain(seen.run, sources, "train.temperature=0.4", "train.batch_size=8")
    assert result.code == 0, result.err
    seen.out = result.out
    return seen


NAMES = ("loss_0_polyps", "loss_1_colours", "loss_2_polyps2", "loss_3_nuclei")
SIZES = (32, 8, 8, 6)


def source_of(row: int) -> int:
    return int(np.searchsorted(np.cumsum(SIZES), row, side="right"))


def test_the_weights_set_how_many_tiles_of_each_are_seen(seen: Seen, tiles: Path, npz: Path) -> None:
    held = 32 + 8 + 8 + 6 - int(seen.out.split(" training tiles")[0].split()[-1])
    assert held > 0  # for the health signs, of the first source alone
    draws = 54 - held
    drawn = Counter(source_of(row) for step in seen.rows for row in step)

    assert sum(drawn.values()) == draws // 8 * 8
    for source, weight in enumerate((1, 1, 1, 3)):
        assert drawn[source] <= math.ceil(draws * weight / 6)
        assert drawn[source] >= math.floor(draws * weight / 6) - draws % 8
    assert any(len({source_of(row) for row in step}) > 2 for step in seen.rows)  # mix: batch
    assert f"{tiles} (mhist, protocol official), split train: 32 tiles (16 HP, 16 SSA)" in seen.out
    assert f"{npz} (pathmnist), split train: 6 tiles" in seen.out
    assert seen.out.count("8 tiles of them used") == 2


def test_loss_of_each_source_equals_a_hand_computation(seen: Seen, read_metrics: Any) -> None:
    """NT-Xent of each tile from the definition, in double precision, tile by tile."""
    (row,) = read_metrics(seen.run)
    losses: dict[int, list[float]] = {source: [] for source in range(4)}
    for rows, (a, b) in zip(seen.rows, seen.projections, strict=True):
        z = [vector / vector.norm() for vector in torch.cat([a, b]).double()]
        for i, tile in enumerate(rows):
            of_both = []
            for anchor, positive in ((i, i + len(rows)), (i + len(rows), i)):
                terms = [math.exp(float(z[anchor] @ z[k]) / 0.4) for k in range(len(z)) if k != anchor]
                of_both.append(-float(z[anchor] @ z[positive]) / 0.4 + math.log(sum(terms)))
            losses[source_of(tile)].append(sum(of_both) / 2)

    assert [key for key in row if key.startswith("loss_") and key != "loss_relative"] == list(NAMES)
    for source, name in enumerate(NAMES):
        assert row[name] == pytest.approx(np.mean(losses[source]), rel=1e-5)
    assert len({round(row[name], 6) for name in NAMES}) == 4
    total = sum(row[name] * len(losses[source]) for source, name in enumerate(NAMES))
    assert total / sum(map(len, losses.values())) == pytest.approx(row["loss"], rel=1e-6)


def test_similarities_are_those_of_the_projections(seen: Seen, read_metrics: Any) -> None:
    (row,) = read_metrics(seen.run)
    steps = torch.tensor([[float(value) for value in similarities(*pair)] for pair in seen.projections])

    positive, negative = steps.mean(0).tolist()
    assert row["positive_similarity"] == pytest.approx(positive, abs=1e-6)
    assert row["negative_similarity"] == pytest.approx(negative, abs=1e-6)
    assert abs(positive - negative) > 1e-3


def test_a_tile_that_comes_again_comes_in_other_views(seen: Seen) -> None:
    count: Counter[int] = Counter()
    for rows, numbers in seen.views:
        for tile, number in zip(rows, numbers, strict=True):
            assert number == 2 * count[tile]  # the first of the pair; the second is the next
            count[tile] += 1

    assert max(count.values()) >= 3  # so this said something
    assert max(count[tile] for tile in range(48, 54)) - min(count[tile] for tile in range(48, 54)) <= 2  # drop-last


def test_checkpoint_and_configuration_hold_the_list(seen: Seen) -> None:
    content = torch.load(seen.run / "checkpoints/last.pt", weights_only=True)
    loaded = load_config(PretrainConfig, seen.run / "config.yaml")

    assert [source["source"] for source in content["config"]["data"]] == ["mhist", "folder", "synthetic", "pathmnist"]
    assert {source["size_px"] for source in content["config"]["data"]} == {32}
    assert content["classes"] == ["HP", "SSA"]  # of the first; they colour nothing but the kNN
    assert content["config"] == yaml.safe_load((seen.run / "config.yaml").read_text()) == loaded.model_dump(mode="json")
    assert [source.weight for source in loaded.data] == [1, 1, 1, 3]


# --- what load_sources makes of them ---


def some(labels: list[int], *, classes: int, groups: list[str] | None = None) -> Tiles:
    return Tiles(
        images=np.full((len(labels), 8, 8, 3), classes, dtype=np.uint8),
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(f"{classes}_{c}" for c in range(classes)),
        ids=tuple(f"tile{i}" for i in range(len(labels))),
        groups=None if groups is None else np.array(groups),
    )


LABELLED = some([0, 1] * 20, classes=2)
GROUPED = some([0, 1, 2] * 20, classes=3, groups=[f"slide{i // 6}" for i in range(60)])
BARE = some([-1] * 10, classes=0)
BARE_GROUPED = some([-1] * 10, classes=0, groups=["slide0"] * 10)
EMPTIED = some([-1] * 10, classes=2)  # the classes have names, no tile is of one


@pytest.mark.parametrize(
    ("sets", "watched", "grouped"),
    [
        ([LABELLED, GROUPED], 0, False),
        ([GROUPED, LABELLED], 0, True),
        ([BARE, GROUPED], 1, True),
        ([BARE_GROUPED, LABELLED], 1, False),
        ([EMPTIED, LABELLED], 1, False),
        ([LABELLED, BARE_GROUPED, GROUPED], 0, False),
        ([BARE, BARE_GROUPED], None, False),
        ([EMPTIED, BARE], None, False),
    ],
    ids=[
        "groups in the second",
        "groups in the first",
        "all known in the second",
        "groups where no labels are",
        "no label of the first's classes",
        "three",
        "no labels",
        "no labels but classes",
    ],
)
def test_labels_of_the_first_set_that_has_some_serve_the_health_metrics(
    sets: list[Tiles], watched: int | None, grouped: bool, wrap: Any
) -> None:
    wrap(pretrain_tiles=lambda load, section, **_: sets[int(section.root[-1])])
    settings = config(*({"source": "folder", "root": f"/set{i}"} for i in range(len(sets))), health={"tiles": 12})

    tiles, source, _ = sources.load_sources(settings)
    watch = carve_health(tiles, settings)

    assert source.tolist() == [i for i, part in enumerate(sets) for _ in range(len(part))]
    np.testing.assert_array_equal(
        tiles.images[:][:, 0, 0, 0], np.concatenate([part.images[:, 0, 0, 0] for part in sets])
    )
    for i, part in enumerate(sets):
        expected = part.labels.tolist() if i == watched else [-1] * len(part)
        assert tiles.labels[source == i].tolist() == expected
    assert (tiles.groups is not None) is grouped
    if watched is None:
        assert len(watch.train) == len(tiles)
        assert len(watch.bank) == 0
        return
    assert tiles.classes == sets[watched].classes
    assert set(source[watch.queries]) == set(source[watch.bank]) == {watched}
    assert set(watch.train) == set(range(len(tiles))) - set(watch.queries)
    if grouped:
        assert tiles.groups is not None
        assert not set(tiles.groups[watch.queries]) & set(tiles.groups[watch.train])
        assert not set(tiles.groups[source != watched]) & set(tiles.groups[source == watched])


def test_sources_of_other_sizes_are_brought_to_one(flat: Path, folder3: Path, npz: Path) -> None:
    settings = config(
        {"source": "folder", "root": str(folder3)},
        {"source": "folder", "root": str(flat)},
        {"source": "pathmnist", "root": str(npz)},
    )

    tiles, source, _ = sources.load_sources(settings)

    assert tiles.images.shape == (24 + 12 + 6, 32, 32, 3)
    shrunk = tiles.images[source == 1]
    for index, tile in enumerate(shrunk):
        assert tile[:, 4:12].reshape(-1, 3).tolist() == [[100 + 10 * index, 0, 0]] * (32 * 8)
        assert tile[:, 20:28].reshape(-1, 3).tolist() == [[0, 0, 100 + 10 * index]] * (32 * 8)


def test_fewer_tiles_are_part_of_more_and_drawn_by_the_split_seed(flat: Path) -> None:
    def names(tiles: int | None, **changed: Any) -> list[str]:
        entry = {"source": "folder", "root": str(flat), "tiles": tiles}
        return list(sources.load_sources(config({**entry, **changed}, seed=tiles or 0))[0].ids)

    everything, eight, four = names(None), names(8), names(4)

    assert len(everything) == 12
    assert len(eight) == 8
    assert set(four) < set(eight) < set(everything)
    assert eight == sorted(eight)
    assert names(8, split_seed=1) != eight
    assert names(12) == everything


def test_the_order_of_an_epoch_follows_seed_and_number() -> None:
    train, source = np.arange(3, 23), np.zeros(23, dtype=np.int64)

    def rows(seed: int, epoch: int) -> list[int]:
        settings = config({"source": "folder", "root": "/set"}, seed=seed, train={"batch_size": 4})
        return sources.epoch_rows(train, source, settings, epoch=epoch).ravel().tolist()

    assert sorted(rows(0, 0)) == train.tolist()
    assert rows(0, 0) == rows(0, 0)
    assert len({tuple(rows(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


# --- the views and the learning rate ---


def test_clean_second_view_is_the_normalised_tile() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    views = Views(augmentation=Augmentation(), seed=3, mean=mean, std=std, size_px=16, clean_second=True)
    rows, number = torch.tensor([4, 0, 4]), torch.tensor([0, 0, 2])

    drawn = views.batch(rows, number, epoch=torch.tensor(1))
    a, b = ViewProjections(torch.nn.Flatten(), views=views)(torch.from_numpy(images[[4, 0, 4]]), drawn)

    clean = (images[[4, 0, 4]].transpose(0, 3, 1, 2) / 255 - mean.numpy()[:, None, None]) / std.numpy()[:, None, None]
    np.testing.assert_allclose(b.reshape(3, 3, 16, 16).numpy(), clean, atol=1e-5)
    random = augment.view(
        torch.from_numpy(images[[4, 0, 4]]),
        rows,
        augmentation=Augmentation(),
        seed=3,
        epoch=1,
        view=torch.tensor([0, 0, 2]),
        mean=mean,
        std=std,
    )
    assert torch.equal(a.reshape(3, 3, 16, 16), random)
    assert not torch.equal(a[0], a[2])  # the same tile, seen again


def test_cross_view_loss_against_the_clean_tile_on_a_multistep_schedule(
    cli: Any, flat: Path, tmp_path: Path, read_metrics: Any
) -> None:
    words = [
        "model.name=timm:test_resnet",
        "train.loss=cross_view",
        "train.second_view=clean",
        "train.epochs=4",
        "train.batch_size=6",
    ]
    schedule = ["train.schedule=multistep", "train.milestones=[1, 3]", "train.gamma=0.5"]

    result = cli.pretrain(tmp_path / "run", data({"source": "folder", "root": str(flat)}), *words, *schedule)

    assert result.code == 0, result.err
    rows = read_metrics(tmp_path / "run")
    peak = 0.06 * 6 / 256
    assert [row["learning_rate"] for row in rows] == pytest.approx([peak, peak / 2, peak / 2, peak / 4])
    for row in rows:
        assert row["loss_relative"] == pytest.approx(row["loss"] / math.log(6))
        assert "knn_balanced_accuracy" not in row  # nothing is labelled
        assert not any(key.startswith("loss_0") for key in row)  # one source: its loss is the loss
    assert "of ln N)" in result.out


# --- resumption ---


@pytest.fixture(scope="module")
def two_sources(tiles: Path, flat: Path) -> list[str]:
    sources = data({"root": str(tiles), "tiles": 12, "weight": 2}, {"source": "folder", "root": str(flat), "weight": 1})
    return [sources, "model.name=timm:test_resnet", "train.mix=source", "train.batch_size=4", "train.epochs=2"]


@pytest.fixture(scope="module")
def stopped(cli: Any, two_sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run: Path = tmp_path_factory.mktemp("runs") / "stopped"
    result = cli.pretrain(run, *two_sources, "train.stop_after_epoch=1")
    assert result.code == 0, result.err
    return run


def test_resumed_on_two_weighted_sources_equals_straight_through(
    cli: Any,
    two_sources: list[str],
    stopped: Path,
    tmp_path: Path,
    wrap: Any,
    differing_tensors: Any,
    read_metrics: Any,
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "resumed"))
    steps: list[list[int]] = []

    def spy(draw: Any, self: Any, rows: torch.Tensor, number: torch.Tensor, **named: Any) -> Any:
        steps.extend(rows.tolist())
        return draw(self, rows, number, **named)

    assert cli.pretrain(run, *two_sources, "--resume").code == 0
    wrap(views=spy)
    assert cli.pretrain(tmp_path / "straight", *two_sources).code == 0

    ours, theirs = (torch.load(f / "checkpoints/last.pt", weights_only=True) for f in (run, tmp_path / "straight"))
    assert ours["epoch"] == 2
    assert ours["optimizer"]["state"]
    for key in ("model", "optimizer", "scaler", "fingerprint", "classes"):
        assert differing_tensors(ours[key], theirs[key], key) == []
    resumed, straight = (
        [
            {k: v for k, v in row.items() if k not in ("tiles_per_second", "seconds", "busy")}
            for row in read_metrics(folder)
        ]
        for folder in (run, tmp_path / "straight")
    )
    assert resumed == straight
    assert {"loss_0_polyps", "loss_1_slides"} <= set(straight[0])  # the second is slides.2024
    # 24 draws, two to one: 16 and 8, so of each epoch's 6 steps 4 are of the first source, and none of both.
    assert len(steps) == 12
    assert all(len({row < 12 for row in step}) == 1 for step in steps)
    assert [sum(step[0] < 12 for step in steps[e : e + 6]) for e in (0, 6)] == [4, 4]


def test_resume_with_other_sources_is_refused(
    cli: Any, two_sources: list[str], stopped: Path, tiles: Path, snapshot: Any
) -> None:
    before = snapshot(stopped)
    settings, alone = two_sources[1:], data({"root": str(tiles), "tiles": 12, "weight": 2})

    heavier = cli.pretrain(stopped, *two_sources, "data.1.weight=3", "--resume")
    mixed = cli.pretrain(stopped, *two_sources, "train.mix=batch", "--resume")
    fewer = cli.pretrain(stopped, alone, *settings, "--resume")

    assert_refused(heavier, "data.1.weight: got 3, but the run to resume has 1")
    assert_refused(mixed, "train.mix: got 'batch', but the run to resume has 'source'")
    assert_refused(fewer, "data: got", "a list of 1", "a list of 2")
    assert snapshot(stopped) == before


def test_resume_may_move_the_cache(
    cli: Any, two_sources: list[str], stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))

    words = [f"data.0.cache_dir={tmp_path / 'cache'}", "data.0.device_budget_gb=1", "train.stop_after_epoch=1"]
    result = cli.pretrain(run, *two_sources, *words, "--resume")

    assert result.code == 0, result.err
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # it is that of all sources


# --- bad input ---


@pytest.mark.parametrize(
    ("sources", "words", "message"),
    [
        ([{"weight": 0}, {"weight": 0}], [], "data: the weights of the sources sum to 0"),
        ([{"weight": 1}, {}], [], "data.1.weight: missing, but other sources have one; give it to all or to none"),
        ([{"weight": 1}, {"weight": -1}], [], "data.1.weight: must be >= 0"),
        ([{}, {"weight": "much"}], [], "data.1.weight: must be a number, got 'much'"),
        ([{}, {"size_px": 64}], [], "data.1.size_px: must be 32, as for data.0, got 64"),
        ([{}, {"xyz": "red"}], [], "data.1.xyz: unknown key; allowed are source, root,"),
        ([{}, {"wieght": 1}], [], "data.1.wieght: unknown key; did you mean data.1.weight?"),
        ([{}, {"source": "foldr"}], [], "data.1.source: must be auto, mhist, folder, table"),
        ([{}, {}], ["data.root=elsewhere"], "data.root: data is a list of 2; name one: data.0.root=..."),
        ([{}, {}], ["data.7.root=elsewhere"], "data.7.root: no entry 7 in the list; allowed are 0 to 1"),
        ([{}, {}], ["data.1=elsewhere"], "data: must be a mapping"),
        ([{}, {"tiles": 13}], [], "data.1.tiles: got 13, but"),
        ([{}, {"tiles": 1}], [], "data.1.tiles: must be >= 2"),
        ([{}, {}], ["model.name=resnet5"], "model.name: must be resnet18, "),
        ([{}, {}], ["train.batch_size=37"], "train.batch_size: got 37, but there are only 36 training tiles"),
        (
            [{}, {}],
            ["train.mix=source", "train.batch_size=13"],
            "has 12 tiles and 12 draws per epoch, and train.batch_size is 13",
        ),
        (
            [{"weight": 0.01}, {"weight": 1}],
            ["train.mix=source", "train.batch_size=4"],
            "tiles and 0 draws per epoch, and train.batch_size is 4",
        ),
        ([{"weight": 0.01}, {"weight": 1}], [], "data.0.weight: got 0.01, which gives 0 of the 36 draws"),
    ],
)
def test_refused_in_one_line(
    cli: Any,
    folder3: Path,
    flat: Path,
    tmp_path: Path,
    sources: list[Entry],
    words: list[str],
    message: str,
) -> None:
    entries = [{"source": "folder", "root": str(root), **s} for root, s in zip((folder3, flat), sources, strict=True)]
    result = cli.pretrain(tmp_path / "run", data(*entries), *words)  # 36 tiles: too few labels to hold some out

    assert_refused(result, message)
    assert list(tmp_path.iterdir()) == []


def test_several_faults_come_at_once(cli: Any, tmp_path: Path) -> None:
    result = cli.pretrain(tmp_path / "run", data({"root": "a", "weight": -1}, {"size": 3}))

    assert result.code == 2
    assert [line.split(": ")[1] for line in result.err.splitlines()] == ["data.0.weight", "data.1.root", "data.1.size"]
    assert list(tmp_path.iterdir()) == []


def test_numbered_keys_need_a_list(cli: Any, tmp_path: Path) -> None:
    result = cli("pretrain", f"run={tmp_path / 'run'}", "data.0.root=a", "data.1.root=b")

    assert_refused(result, "data: ", "no list yet", "data='[{root: A}, {root: B}]'")
    assert list(tmp_path.iterdir()) == []


def test_a_list_in_the_file_takes_no_key_without_number(cli: Any, folder3: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"run: {tmp_path / 'run'}\ndata:\n- {{source: folder, root: {folder3}}}\n- {{source: folder}}\n")

    wrong = cli("pretrain", "--config", file, f"data.root={folder3}")
    missing = cli("pretrain", "--config", file)

    assert_refused(wrong, "data.root: data is a list of 2; name one: data.0.root=...")
    assert_refused(missing, "data.1.root: missing; set it in the YAML file, or give TILES or data.1.root=VALUE")
    assert list(tmp_path.iterdir()) == [file]


def test_sources_that_hold_one_another_are_refused(cli: Any, folder3: Path, tmp_path: Path) -> None:
    def refused(first: Path, second: Path, *words: str) -> None:
        entries = [{"source": "folder", "root": str(root)} for root in (first, second)]
        assert_refused(cli.pretrain(tmp_path / "run", data(*entries)), *words)

    refused(folder3, folder3, f"data.1.root: {folder3} is data.0.root too")
    refused(folder3, folder3 / "train" / "..", f"data.1.root: {folder3} is data.0.root too")
    refused(folder3, folder3 / "test", f"data.1.root: {folder3}/test is inside data.0.root", "test tiles")
    refused(folder3 / "test" / "benign", folder3, "data.0.root: ", "is inside data.1.root", "test tiles")
    refused(folder3, folder3.parent, f"data.0.root: {folder3} is inside data.1.root ({folder3.parent})", "test tiles")
    refused(folder3, folder3 / "train", f"data.1.root: {folder3}/train is inside data.0.root", "is inside data.0.root")
    link = tmp_path / "link"
    link.symlink_to(folder3 / "test")
    refused(folder3, link, f"data.1.root: {folder3}/test is inside data.0.root")
    assert list(tmp_path.iterdir()) == [link]


def test_the_training_part_of_a_set_may_be_a_source(folder3: Path, flat: Path) -> None:
    roots = [folder3 / "train" / "benign", folder3 / "train" / "cancer", flat]

    tiles, *_ = sources.load_sources(config(*({"source": "folder", "root": str(root)} for root in roots)))

    assert len(tiles) == 8 + 8 + 12


def test_a_source_that_cannot_be_read_is_named(
    cli: Any, folder3: Path, flat: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSCL_CACHE", str(tmp_path / "cache"))
    grey = {
        f"{part}_{what}": np.zeros((4, 28, 28) if what == "images" else (4, 1), dtype=np.uint8)
        for part in ("train", "val", "test")
        for what in ("images", "labels")
    }
    np.savez(tmp_path / "grey.npz", **grey)
    broken = Path(shutil.copytree(flat, tmp_path / "broken"))
    (broken / "tile_03.png").write_bytes(b"no picture")
    good = {"source": "folder", "root": str(folder3)}

    def refused(entry: Entry, *words: str) -> None:
        result = cli.pretrain(tmp_path / "run", data(good, entry))
        assert_refused(result, f"sscl: data.1.root: {entry['root']}", *words)

    refused({"source": "pathmnist", "root": str(tmp_path / "grey.npz")}, "train_images: 1 channel, sscl needs RGB")
    refused({"source": "pathmnist", "root": str(tiles)}, "is a folder")
    refused({"source": "folder", "root": str(broken)}, "tile_03.png")
    refused({"source": "folder", "root": str(tmp_path / "nowhere")}, "no such folder")
    refused({"source": "mhist", "root": str(tiles)}, "MHIST has")
    refused({"source": "synthetic", "root": str(flat)}, "has no annotations.csv")
    assert not (tmp_path / "run").exists()
