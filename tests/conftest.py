"""Where tests reach into the product: its seams by name, and a machine with other graphics cards."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib.util
import inspect
import io
import math
import os
import pkgutil
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import pytest

import forked  # type: ignore[import-not-found]

if TYPE_CHECKING:  # here nothing heavy: xdist imports this before its workers start, which import it again
    import torch
    from matplotlib.figure import Figure

# Collecting makes millions of objects that stay: looking through them for garbage took a third of its 17 s, and time
# in every test after it.
gc.disable()


MEMORY = Path("/dev/shm")
MOST_BYTES = 8 * 2**30  # more than the folders of all tests take


def room_in_memory() -> bool:
    """Return whether a file system in memory has room for the folders of tests, and runs programs."""
    from sscl.memory import free_ram

    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK) or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return False
    return min(free_ram() or 0, shutil.disk_usage(MEMORY).free) > MOST_BYTES


def remove_what_killed_runs_left() -> None:
    """Memory is too dear for it until pytest removes it, after three days."""
    for lock in MEMORY.glob("pytest-of-*/pytest-*/.lock"):
        with contextlib.suppress(OSError):
            old = time.time() - lock.stat().st_mtime > 3600  # a container may share the folder and not its processes
            if old and not Path("/proc", lock.read_text()).exists():
                shutil.rmtree(lock.parent, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    # On a disk, each lock and each rename waits for its journal.
    if config.option.basetemp is None and "TMPDIR" not in os.environ:
        remove_what_killed_runs_left()
        if room_in_memory():
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    stack = contextlib.ExitStack()
    stack.enter_context(forked.served())
    config.add_cleanup(stack.close)
    config.add_cleanup(gc.unfreeze)  # after pytest's last searches; libraries complain of what is left at the end
    if hasattr(config, "workerinput"):
        # Python's own end frees each object, for which the run waits 5 s. This comes after what libraries do there.
        atexit.register(os._exit, 0)


# What takes the longest, by file: begun last, one of these would leave the other workers without work at the end.
LONG = (
    *("test_browser.py", "test_fake_cuda.py", "test_finetune.py", "test_wheel.py", "test_export.py"),
    *("test_slide_page.py", "test_gpu_rows.py", "test_distributed.py", "test_compare.py", "test_encoders.py"),
    *("test_charts.py", "test_pretrain.py", "test_probe.py", "test_torture.py", "test_ranks.py", "test_weights.py"),
    *("test_documents.py", "test_gradcam.py", "test_step.py", "test_augment.py", "test_optim.py", "test_notebooks.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


# A function that moves is renamed here, and in no test.
SEAMS = {
    # pretraining and fine-tuning
    "views": "sscl.train.step.Views.draw",
    "pretrain_views": "sscl.train.step.augment.prepare",
    "pretrain_projections": "sscl.train.step.ViewProjections.forward",
    "pretrain_backward": "sscl.train.step.ContrastiveStep.backward",
    "pretrain_save": "sscl.train.pretrain.save_checkpoint",
    "pretrain_store": "sscl.train.pretrain.place_store",
    "pretrain_tiles": "sscl.data.sources.load_tiles",
    "finetune_forward": "sscl.models.heads.Classifier.forward",
    "finetune_step": "sscl.train.finetune.take_step",
    "finetune_pairs": "sscl.train.finetune.project_pairs",
    "finetune_metrics": "sscl.train.finetune.validation_metrics",
    "finetune_precision": "sscl.train.finetune.autocast",
    "finetune_loss": "sscl.train.preparation.build_loss",
    "finetune_store": "sscl.train.preparation.place_store",
    "finetune_tiles": "sscl.train.labelled.load_tiles",
    "finetune_unlabelled": "sscl.data.split.with_unlabelled",
    "optimizer": "sscl.train.optim.build_optimizer",
    "outputs": "sscl.models.features.outputs",
    "memory": "sscl.train.memory.report",
    "activation_bytes": "sscl.train.memory.activation_bytes",
    "free_memory": "sscl.data.tiles.free_memory",
    "folds_tiles": "sscl.train.folds.load_tiles",
    "folds_parts": "sscl.train.folds.labelled_parts",
    "folds_predict": "sscl.train.folds.predict",
    "folds_start": "sscl.train.folds.start_encoder",
    "fold_predictions": "sscl.train.fold_report.read_predictions",
    "later": "sscl.train.pretrain.Later",
    "pretrain_synchronise": "sscl.train.pretrain.synchronise_batch_norm",
    "finetune_synchronise": "sscl.train.preparation.synchronise_batch_norm",
    "parallel": "sscl.ranks.parallel",
    "fused": "sscl.train.optim._on_gpu",
    "empty_memory": "torch.empty_like",
    "threads": "torch.get_num_threads",
    "encode_part": "sscl.train.step.record_function",
    "compile": "torch.compile",
    "sum_dtype": "sscl.train.step.sum_dtype",
    "batch_norm_order": "sscl.models.batch_norm.epoch_order",
    # weights of others
    "timm_model": "timm.create_model",
    "hub_file": "huggingface_hub.hf_hub_download",
    "torchvision_model": "torchvision.models.get_model",
    "torchvision_file": "torchvision.models._api.load_state_dict_from_url",
    "torch_load": "torch.load",
    "checkpoint_content": "sscl.models.checkpoint.read_torch_file",
    "weights_content": "sscl.models.weights.read_torch_file",
    "merged": "sscl.train.finetune.merged_state",
    # commands
    "evaluate_store": "sscl.commands.evaluate.place_store",
    "gradcam_store": "sscl.commands.gradcam.place_store",
    "compare_step": "sscl.children.run_command",
    "audit_encoder": "sscl.commands.audit.frozen_encoder",
    "init_seconds": "sscl.project.settings.seconds_per_tile",
    "init_bytes": "sscl.project.settings.bytes_per_view",
    "doctor_imports": "sscl.doctor.packages.import_all",
    "export_run": "sscl.models.export_files.run_graph",
    "gradcam_checks": "sscl.explain.explainer.check_maps",
    "report_page": "sscl.commands.report.page.render",
    "report_step": "sscl.children.run_command",
    "project_step": "sscl.children.run_command",
    "tiles_at_once": "sscl.augment._tiles_at_once",
    "travel_pip": "gpu_travel.subprocess.run",
    # pictures
    "savefig": "matplotlib.figure.Figure.savefig",
    "probe_bars": "sscl.plots.probe.plot_bars",
    "probe_curves": "sscl.plots.probe.plot_curves",
    "figure": "sscl.plots.base.save_figure",
    "svg": "sscl.plots.svg.inline",
    "cluster_sheet": "sscl.plots.embedding.cluster_sheet",
    "folds_chart": "sscl.plots.comparison.plot_folds",
    "views_sheet": "sscl.plots.sheets.plot_views",
    # sets of tiles
    "label_fraction": "sscl.data.split.label_fraction",
    "stratified_split": "sscl.data.split.stratified_split",
    "find_pairs": "sscl.data.duplicates.find_pairs",
    "detect": "sscl.data.keypoints.detect",
    "detect_squeezed": "sscl.data.squeezes.detect",
    "mhist_decode": "sscl.data.mhist.decode_tiles",
    "mhist_images": "sscl.data.mhist._find_images",
    "decode_worker": "sscl.data.decode._Worker",
    "decode_start": "sscl.data.decode._Worker.__init__",
    "decode_cores": "os.sched_getaffinity",
    "decode_file": "sscl.data.files.pixels_of",
    "predict_batches": "sscl.data.files.batches",
    "store_read": "sscl.data.tiles.TileStore._read",
    "draw_tile": "sscl.data.synthetic.draw_tile",
    "drawing_cores": "sscl.commands.draw_slides.cpu_cores",
    "download": "sscl.commands.download.download",
    "load_pixels": "PIL.Image.Image.load",
    "list_folder": "os.scandir",
    "lineage_tiles": "sscl.evaluate.lineage.load_tiles",
    # slides
    "pyramid_tile": "sscl.slides.pyramid.read_tile",
    "openslide_tile": "sscl.slides.handles._fill",
    # files
    "sync": "os.fsync",
    "replace": "os.replace",
    "disk_usage": "shutil.disk_usage",
    "lock": "sscl.locks._lock",
    # linear probe and nearest neighbours
    "probe_tiles": "sscl.evaluate.probe_inputs.load_tiles",
    "probe_charts": "sscl.plots.probe.draw_charts",
    "validation_folds": "sscl.evaluate.probe.validation_folds",
    "linear_probe": "sscl.evaluate.probe.fit_linear_probe",
    "knn": "sscl.evaluate.probe.knn_probabilities",
}

# Numbers: how much is done at once, and the published counts of sets.
NUMBERS = {
    "loss_bytes": "sscl.losses.BLOCK_BYTES",
    "knn_queries": "sscl.evaluate.probe._QUERIES_AT_ONCE",
    "duplicates_block": "sscl.data.duplicates._BLOCK",
    "hashes_block": "sscl.data.hashes._BLOCK",
    "voting_cell": "sscl.data.voting._CELL",
    "npz_bytes": "sscl.data.pathmnist._CHUNK_BYTES",
    "npz_bomb_bytes": "sscl.data.npz._BOMB_BYTES",
    "decode_processes_from": "sscl.data.decode._PROCESSES_FROM",
    "mhist_counts": "sscl.data.mhist.PUBLISHED_COUNTS",
    "pathmnist_counts": "sscl.data.pathmnist.PATHMNIST_COUNTS",
    "overview_strip": "sscl.slides.overview._STRIP",
    "slide_picture": "sscl.plots.slide._LONGEST",
    "cam_picture": "sscl.plots.slide_cam._LONGEST",
    "sheet_pixels": "sscl.slides.preview._SHEET_PIXELS",
    "embedded_tiles": "sscl.data.load.MOST_EMBEDDED",
    "kept_bytes": "sscl.data.slide_set.MOST_KEPT",
    "computed_px": "sscl.train.memory.SMALL_PX",
    "pillow_block": "PIL.ImageFile.MAXBLOCK",
}


def put(patch: pytest.MonkeyPatch, functions: dict[str, Callable[..., Any]]) -> None:
    """Have each seam call the function given for it, with the real one before the arguments."""
    for seam, function in functions.items():
        real = pkgutil.resolve_name(SEAMS[seam])

        def call(*given: Any, real: Any = real, function: Any = function, **named: Any) -> Any:
            return function(real, *given, **named)

        patch.setattr(SEAMS[seam], call)


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Leave files to the system, which writes them when it likes: no test stops the machine, and a wait is 10 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SEAMS["sync"], lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_hub() -> Iterator[None]:
    """Have no test ask the hub: where it seems to be, nobody answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        yield


@pytest.fixture
def wrap(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that takes `seam=function` and has that function called in the seam's place.

    It gets the real one before the arguments, to call or not.
    """
    return lambda **functions: put(monkeypatch, functions)


@pytest.fixture(scope="session")
def wrapped() -> Callable[..., AbstractContextManager[None]]:
    """Return the same as a context, for fixtures that outlive a test and for tests that stop it."""

    @contextlib.contextmanager
    def inside(**functions: Callable[..., Any]) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            put(patch, functions)
            yield

    return inside


@pytest.fixture(scope="session")
def estimated_once(wrapped: Callable[..., AbstractContextManager[None]]) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which the memory that training a model takes is estimated once, and scaled by its pixels."""
    known: dict[str, float] = {}

    def estimate(real: Callable[..., int], model: torch.nn.Module, *, shape: tuple[int, ...], **given: Any) -> int:
        trained = [name for name, value in model.named_parameters() if value.requires_grad]
        key = f"{model} {given} {trained}"
        if key not in known:
            known[key] = real(model, shape=shape, **given) / math.prod(shape)
        return round(known[key] * math.prod(shape))

    return lambda: wrapped(activation_bytes=estimate)


@pytest.fixture(scope="module")
def detected_once(wrapped: Callable[..., AbstractContextManager[None]]) -> Iterator[None]:
    """Detect the keypoints of a picture once for a module, whose tests search the same tiles again and again."""
    known: dict[tuple[Any, ...], Any] = {}

    def detect(real: Callable[..., Any], luma: Any, **named: Any) -> Any:
        inside = named.get("inside")
        key = (luma.shape, luma.tobytes(), named.get("most"), None if inside is None else inside.tobytes())
        if key not in known:
            known[key] = real(luma, **named)
        return known[key]

    with wrapped(detect=detect, detect_squeezed=detect):
        yield


@pytest.fixture
def number(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that takes `name=value` and sets one of the numbers."""

    def set_to(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setattr(NUMBERS[name], value)

    return set_to


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """What charts are drawn of, by the name of the file: the arguments, last those with names. Nothing is drawn."""
    from sscl.plots import calibration, charts

    found: dict[str, tuple[Any, ...]] = {}

    def keep(*given: Any, path: Path, **named: Any) -> None:
        found[path.name] = (*given, named)

    for module in (charts, calibration):
        for name in [name for name in vars(module) if name.startswith("plot_")]:
            monkeypatch.setattr(module, name, keep)
    return found


# Charts that are drawn again and again: after each epoch, of each evaluation, for each tile.
OFTEN_DRAWN = (
    *("charts.plot_history", "charts.plot_confusion", "charts.plot_roc", "charts.plot_precision_recall"),
    *("calibration.plot_reliability", "calibration.plot_coverage", "calibration.plot_decision_curve"),
    "cam.plot_cam_panel",
)


@pytest.fixture(scope="session")
def blank_drawing() -> Callable[[], AbstractContextManager[None]]:
    """Return `blank_pictures` as a context, for fixtures that outlive a module."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from PIL import Image

    from sscl.plots import base

    plots = {f"sscl.plots.{name}": pkgutil.resolve_name(f"sscl.plots.{name}") for name in OFTEN_DRAWN}
    sizes: dict[tuple[str, ...], Any] = {}
    last: list[Any] = []

    @functools.cache
    def blank(width: int, height: int) -> bytes:
        picture = io.BytesIO()
        Image.new("L", (width, height), "white").save(picture, format="png")
        return picture.getvalue()

    def save(figure: Figure, path: Path) -> None:
        last[:] = [figure.get_size_inches()]
        width, height = (int(inches * figure.dpi) for inches in last[0])
        with base.writing(path) as temporary:
            if path.suffix == ".svg":
                box = f'width="{width}pt" height="{height}pt" viewBox="0 0 {width} {height}"'
                texts = "".join(f"<text>{escape(found.get_text())}</text>" for found in figure.findobj(Text))
                svg = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{texts}</svg>'
                temporary.write_text(svg, encoding="utf-8")
            else:
                temporary.write_bytes(blank(width, height))

    def once(plot: Callable[..., None], *given: Any, path: Path, **named: Any) -> None:
        """Make the figure of each kind once, of later ones the empty figure: most runs leave the same kinds."""
        inspect.signature(plot).bind(*given, path=path, **named)
        kind = (plot.__name__, *(str(named.get(key)) for key in ("series", "classes", "positive", "method")))
        kind += (str(len(named["title"]) // 40 if "title" in named else 0),)  # a long one makes a figure higher
        if kind in sizes and path.suffix == ".png":
            base.save_figure(Figure(figsize=sizes[kind], dpi=base.DPI), path)
        else:
            last.clear()
            plot(*given, path=path, **named)
            if last:  # a test may have its own way of saving
                sizes[kind] = last[0]

    @contextlib.contextmanager
    def inside() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "save_figure", save)
            for name, plot in plots.items():
                patch.setattr(name, functools.partial(once, plot))
            yield

    return inside


@pytest.fixture(scope="module")
def blank_pictures(blank_drawing: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Leave charts blank, of their figure's size, an SVG with their words: they are made, and not rendered."""
    with blank_drawing():
        yield


@pytest.fixture
def disk_full(wrap: Callable[..., None]) -> Callable[[], None]:
    """Return a function after which no file can be written to the disk."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    return lambda: wrap(sync=full)


HOLD = """
import sys, time
from pathlib import Path
from sscl import locks
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """Return a function that has another process hold the lock of a path, and returns the process."""
    with contextlib.ExitStack() as stack:

        def start(path: Path) -> subprocess.Popen[bytes]:
            words = [sys.executable, "-c", HOLD, str(path)]
            process = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            return process

        yield start


@pytest.fixture
def commands_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands that the product starts as processes forked, which spares them their imports."""
    program = "import runpy; runpy.run_module('sscl', run_name='__main__', alter_sys=True)"

    def run(words: Sequence[str], *, stdin: int, stdout: int, environment: Mapping[str, str]) -> int:
        return int(forked.start(program, *words, stdin=stdin, stdout=stdout, stderr=2, env=environment).wait())

    monkeypatch.setattr("sscl.forks.run", run)


@pytest.fixture
def with_cards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that has torch see CUDA cards of these capabilities, and itself built for these architectures,
    or for those of the cards.
    """
    import torch

    def see(*found: tuple[int, int], names: Sequence[str] = (), built: Sequence[str] | None = None) -> None:
        def number(device: Any) -> int:
            return int(torch.device(device or "cuda").index or 0)

        seen = {
            "is_available": lambda: bool(found),
            "device_count": lambda: len(found),
            "get_device_capability": lambda device=None: found[number(device)],
            "get_device_name": lambda device=None: names[number(device)] if names else f"card {number(device)}",
            "get_arch_list": lambda: [f"sm_{a}{b}" for a, b in found] if built is None else list(built),
        }
        for name, answer in seen.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    return see


@pytest.fixture
def with_mps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that says what torch finds of Apple's graphics."""
    import torch

    def see(*, built: bool = True, available: bool = True) -> None:
        for name, answer in (("is_built", built), ("is_available", built and available)):
            monkeypatch.setattr(torch.backends.mps, name, lambda answer=answer: answer)

    return see


@pytest.fixture(scope="session")
def release() -> ModuleType:
    """The script that releases, as a module."""
    loader = SourceFileLoader("release", str(Path(__file__).resolve().parents[1] / "scripts" / "release"))
    spec = importlib.util.spec_from_loader("release", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
