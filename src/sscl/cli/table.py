"""The table of commands, the only list of them: their words, flags and options, and the overview of `sscl --help`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sscl.cli.arguments import CONFIG, RUN, TILES, Word


@dataclass(frozen=True)
class Command:
    """A command: where its function is, what its configuration is called, and which words and flags it takes."""

    function: str  # module:function, of sscl.commands where the module has no dot
    config: str  # class in sscl.config
    summary: str
    flags: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()  # name and key of each that has a value: --folds 5 is train.folds=5
    words: tuple[Word, ...] = ()  # without =, in order
    interrupted: str = "nothing is written, and nothing is lost; run it again"  # said after Ctrl-C

    @property
    def takes(self) -> tuple[Word, ...]:
        """All words: a config too, but for commands that take no settings of their own."""
        return (
            self.words
            if self.config in ("ConfigsConfig", "CompletionConfig", "EncodersConfig")
            else (CONFIG, *self.words)
        )


COMMANDS = {
    "demo": Command(
        "demo:main",
        "DemoConfig",
        "run the whole method on synthetic polyps, in minutes",
        ("overwrite",),
        words=(Word("DIR", "run", "the folder to write"),),
        interrupted="every file is complete or absent; run it again with --overwrite",
    ),
    "doctor": Command(
        "doctor:main",
        "DoctorConfig",
        "what is installed, what this machine has, what would fail",
        ("json",),
        interrupted="nothing is written",
    ),
    "init": Command(
        "init:main",
        "InitConfig",
        "look at your tiles, and write settings that fit them",
        ("overwrite",),
        words=(TILES,),
    ),
    "train": Command(
        "train:main",
        "TrainConfig",
        "run all stages that init has written, to the page",
        ("overwrite",),
        words=(Word("FOLDER", "folder", "the folder that sscl init wrote"),),
        interrupted="what is finished is kept; run it again, and it continues",
    ),
    "completion": Command(
        "sscl.cli.completion:main",
        "CompletionConfig",
        "print a script that completes words in bash, zsh or fish",
        words=(Word("SHELL", "shell", "bash, zsh or fish"),),
        interrupted="nothing is written",
    ),
    "configs": Command(
        "configs:main",
        "ConfigsConfig",
        "list the configs that come with sscl, or print one",
        words=(Word("NAME", "name", "the config to print"),),
        interrupted="nothing is written",
    ),
    "encoders": Command(
        "encoders:main",
        "EncodersConfig",
        "list the encoders that have a name, or say all about one",
        words=(Word("NAME", "name", "the encoder to tell about"),),
        interrupted="nothing is written",
    ),
    "data synth": Command(
        "data:synth",
        "SynthConfig",
        "write synthetic polyp tiles in MHIST's layout",
        words=(Word("DIR", "root", "the folder to write"),),
    ),
    "slides synth": Command(
        "draw_slides:main",
        "SynthSlidesConfig",
        "write drawn slides with their truth, to try the commands on",
        words=(Word("DIR", "root", "the folder to write"),),
    ),
    "data download": Command(
        "download:main",
        "DownloadConfig",
        "download PathMNIST and verify its checksum",
        words=(Word("NAME", "name", "pathmnist, or pathmnist_64, _128 or _224"),),
        interrupted="run it again to continue the download",
    ),
    "data inspect": Command(
        "data:inspect",
        "InspectConfig",
        "count the tiles; show samples, classes and augmentations",
        ("overwrite",),
        words=(TILES,),
    ),
    "data audit": Command(
        "audit:main",
        "AuditConfig",
        "find duplicates within and across splits, and outliers",
        ("overwrite", "strict"),
        words=(TILES,),
    ),
    "slides tile": Command(
        "slides:tile",
        "TileSlidesConfig",
        "find the tissue tiles of whole slides, as an index",
        ("overwrite",),
        words=(Word("SLIDES", "slides", "folders of slides, slide files, DICOM folders", many=True),),
        interrupted="the slides that are done are kept; the same command goes on, but for --overwrite",
    ),
    "slides inspect": Command(
        "slides:inspect",
        "InspectSlidesConfig",
        "what slides are, and where the tiles of an index lie",
        ("overwrite",),
        words=(Word("SLIDES", "slides", "an index, or folders of slides, slide files", many=True),),
    ),
    "slides view": Command(
        "view_slides:main",
        "ViewSlidesConfig",
        "slides at full resolution, in your browser",
        words=(Word("FOLDER", "folder", "that predict wrote of slides, an index, or slides"),),
    ),
    "cache": Command(
        "cache:main",
        "CacheConfig",
        "list, verify or empty the cache of decoded tiles and features",
        ("empty", "verify"),
        words=(Word("DIR", "cache_dir", "the cache folder"),),
        interrupted="every file is whole or gone; run it again",
    ),
    "pretrain": Command(
        "pretrain:main",
        "PretrainConfig",
        "train an encoder without labels (SimCLR)",
        ("resume", "overwrite"),
        words=(TILES,),
        interrupted="--resume continues from the last complete epoch, if there is one; --overwrite starts again",
    ),
    "finetune": Command(
        "finetune:main",
        "FinetuneConfig",
        "train a classifier with labels, or cross-validate it",
        ("resume", "overwrite"),
        options=(("folds", "train.folds"),),
        words=(TILES,),
        interrupted=(
            "--resume continues from the last complete epoch, if there is one; --overwrite starts again; with --folds "
            "the same command continues"
        ),
    ),
    "eval": Command(
        "evaluate:main",
        "EvalConfig",
        "metrics with 95% intervals, confusion matrix, curves",
        ("overwrite",),
        options=(("checkpoint", "checkpoint"),),
        words=(RUN, replace(TILES, about="other tiles than those it was trained on")),
    ),
    "compare": Command(
        "compare:main",
        "CompareConfig",
        "compare runs over seeds and label fractions, or finished runs",
        ("overwrite",),
        words=(Word("RUN", "finished", "finished finetune runs, or folders with a predictions.csv", many=True),),
        interrupted="run it again, with --overwrite where it asks for that: complete runs are reused",
    ),
    "probe": Command(
        "probe:main",
        "ProbeConfig",
        "compare encoders by linear probe, k-NN and few shots",
        ("overwrite",),
        interrupted="run it again: features that are complete are read from the cache",
    ),
    "embed": Command(
        "embed:main",
        "EmbedConfig",
        "embeddings of a tile set, 2D maps and clusters",
        ("overwrite",),
        words=(Word("RUN", "encoder.weights", "run folder, file of weights, or imagenet"), TILES),
    ),
    "gradcam": Command(
        "gradcam:main",
        "GradcamConfig",
        "heatmaps and boxes: where the model looked",
        ("overwrite",),
        options=(("checkpoint", "checkpoint"),),
        words=(RUN, Word("IMAGES", "images", "a folder of image files, instead of the data set", exists=True)),
    ),
    "report": Command(
        "report:main",
        "ReportConfig",
        "one HTML page of runs, with a gallery of tiles to review",
        ("overwrite",),
        words=(Word("RUN", "runs", "folders that sscl wrote; the page is about the first finetune run", many=True),),
    ),
    "predict": Command(
        "predict:main",
        "PredictConfig",
        "classify new tiles or slides, with calibrated probabilities",
        ("overwrite",),
        options=(("checkpoint", "checkpoint"),),
        words=(
            RUN,
            Word("TILES", "paths", "folders, image files and CSV lists of new tiles, or slides or an index", many=True),
        ),
    ),
    "export": Command(
        "export:main",
        "ExportConfig",
        "write the encoder or classifier for other programs",
        ("overwrite",),
        options=(("checkpoint", "checkpoint"),),
        words=(replace(RUN, about="run folder, checkpoint, or file of an encoder"),),
    ),
}
STAGES = {
    "First steps": ("init", "train", "doctor", "demo", "configs", "encoders", "completion"),
    "Data": ("data synth", "data download", "data inspect", "data audit", "cache"),
    "Slides": ("slides tile", "slides inspect", "slides view", "slides synth"),
    "Train": ("pretrain", "finetune"),
    "Evaluate": ("eval", "compare", "probe", "embed"),
    "Explain": ("gradcam", "report"),
    "Use": ("predict", "export"),
}
OPTIONS = {  # how each is written, and what it does; name: of the command
    "config": ("FILE|NAME", "the same as the word CONFIG"),
    "checkpoint": ("RUN", "the same as the word RUN"),
    "folds": ("K", "K-fold cross-validation (train.folds=K); run again, it continues with the missing folds"),
    "resume": ("", "continue a run after its last complete epoch: sscl {name} RUN --resume"),
    "json": ("", "print JSON for programs"),
    "empty": ("", "delete what is listed"),
    "verify": ("", "read every file and compare it with its digests; exit with code 1 if one is damaged"),
    "overwrite": ("", "replace what sscl wrote there before"),
    "strict": ("", "exit with code 1 if the split leaks"),
}


def overview(commands: Mapping[str, Command] = COMMANDS) -> str:
    """Return the text of `sscl --help`, or of a group of commands."""
    width = max(map(len, COMMANDS))
    lines = []
    for stage, names in STAGES.items():
        rows = [f"  {name:<{width}}  {commands[name].summary}" for name in names if name in commands]
        lines += ["", stage, *rows] if rows else []
    return "\n".join(
        [
            "usage: sscl COMMAND [CONFIG] [RUN] [TILES] [KEY=VALUE ...]",
            "",
            "Classifiers of H&E tiles from few labels: self-supervised pretraining,",
            "fine-tuning, evaluation, and heatmaps of where the model looked.",
            *lines,
            "",
            "sscl COMMAND --help lists its words and the keys that matter most;",
            "--help-all lists every key with its default.",
            "CONFIG is a YAML file, or a name that sscl configs lists. KEY=VALUE, as in",
            "train.epochs=10, comes on top of it; text and paths are taken as typed.",
        ]
    )
