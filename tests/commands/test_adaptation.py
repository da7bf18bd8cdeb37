"""LoRA, layer-wise rates and gradient checkpointing in pretrain and finetune, from the weights of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sscl.config import PretrainConfig, load_config
from sscl.models.encoders import build_encoder
from sscl.models.lora import lora_layers

VIT = ("model.name=timm:test_vit", "model.kwargs={depth: 2}")
LORA = ("train.lora.rank=2", "train.optimizer=adamw", "train.learning_rate=0.05", "train.gradient_checkpointing=true")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights as a hub gives it."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("published") / "vit.pt"
    torch.save(build_encoder("timm:test_vit", kwargs={"depth": 2}).net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def words(published: Path) -> tuple[str, ...]:
    more = ("train.epochs=2", "train.microbatch=4", "precision=bf16", "train.layer_decay=0.5")
    return (*VIT, f"model.weights={published}", *LORA, *more)


@pytest.fixture(scope="module")
def gone_on(cli: Any, words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Contrastive pretraining that went on from the published encoder."""
    run = tmp_path_factory.mktemp("adaptation") / "run"
    result = cli.pretrain(run, *words)
    assert result.code == 0, result.err
    return run


def test_what_pretraining_leaves_is_an_encoder_as_any_other(gone_on: Path, published: Path) -> None:
    before = torch.load(published, weights_only=True)
    after = torch.load(gone_on / "encoder.pt", weights_only=True)
    assert after.keys() == {f"net.{key}" for key in before}
    changed = {key for key, value in before.items() if not torch.equal(value, after[f"net.{key}"])}
    assert changed == {f"blocks.{i}.attn.{layer}.weight" for i in range(2) for layer in ("qkv", "proj")}
    kept = torch.load(gone_on / "checkpoints/last.pt", weights_only=True)
    assert all(torch.equal(value, after[key]) for key, value in kept["encoder"].items())
    assert "encoder.net.blocks.1.attn.qkv.lora_b" in kept["model"]  # to resume from


def test_pretraining_takes_the_encoder_from_its_weights_where_none_is_given(
    cli: Any, gone_on: Path, tmp_path: Path
) -> None:
    words = [f"data.root={cli.tiles}", "data.source=mhist", "data.published=false", "progress=false", "device=cpu"]
    tiny = ["train.batch_size=8", "train.epochs=1", "train.warmup_epochs=0", "health.tiles=8"]
    result = cli("pretrain", f"run={tmp_path / 'run'}", f"from={gone_on}", *words, *tiny)
    assert result.code == 0, result.err
    ours, theirs = (load_config(PretrainConfig, run / "config.yaml") for run in (tmp_path / "run", gone_on))
    assert (ours.model.name, ours.model.kwargs) == (theirs.model.name, theirs.model.kwargs)
    assert ours.data[0].size_px == theirs.data[0].size_px != 224


def test_it_resumes_to_the_same_bits(
    cli: Any, gone_on: Path, words: tuple[str, ...], tmp_path: Path, differing_tensors: Any
) -> None:
    assert cli.pretrain(tmp_path / "run", *words, "train.stop_after_epoch=1").code == 0
    # Checkpoints change nothing that is learned, so they may come and go.
    result = cli.pretrain(tmp_path / "run", *words, "train.gradient_checkpointing=false", "--resume")

    assert result.code == 0, result.err
    ours, theirs = (torch.load(run / "checkpoints/last.pt", weights_only=True) for run in (tmp_path / "run", gone_on))
    for key in ("model", "encoder", "optimizer"):
        assert differing_tensors(ours[key], theirs[key], key) == []


def test_a_classifier_with_lora_is_evaluated_as_any_other(cli: Any, gone_on: Path, tmp_path: Path, wrap: Any) -> None:
    encoders: list[Any] = []

    def merged(real: Any, encoder: Any) -> Any:
        encoders.append(encoder)
        return real(encoder)

    wrap(merged=merged)
    run, contrast = tmp_path / "run", ("contrast.kind=nt_xent", "contrast.projection.dim=8")
    result = cli.finetune(run, *VIT, f"model.weights={gone_on}", *LORA, *contrast)
    assert result.code == 0, result.err
    encoder = encoders[-1]
    assert len(list(lora_layers(encoder))) == 4
    trained = {name.rpartition(".")[2] for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"lora_a", "lora_b"}
    best = torch.load(run / "checkpoints/best.pt", weights_only=True)
    assert not any("lora" in key for key in best["encoder"])
    # The validation logits that temperature and thresholds were fitted to are those of the merged encoder.
    plain = build_encoder("timm:test_vit", kwargs={"depth": 2}).eval().to(memory_format=torch.channels_last)
    plain.load_state_dict(best["encoder"])
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(images), encoder.eval()(images))
    assert "LoRA of rank 2" in (run / "MODEL_CARD.md").read_text()
    assert cli.evaluate(run, "out=" + str(tmp_path / "eval")).code == 0


@pytest.mark.parametrize(
    ("command", "more", "key"),
    [
        ("finetune", ["train.lora.rank=2", "model.name=resnet18"], "train.lora"),
        ("pretrain", ["train.lora.rank=2"], "train.lora"),  # of a ResNet
        ("pretrain", [*VIT, "train.lora={rank: 2, targets: [w12]}"], "train.lora.targets"),
        ("finetune", ["train.lora.rank=2", "train.freeze_encoder=true"], "train.lora"),
        ("finetune", ["train.layer_decay=0.5", "train.freeze_encoder=true"], "train.layer_decay"),
        ("finetune", ["train.lora.alpha=4"], "train.lora.alpha"),
        ("finetune", ["train.lora.rank=0"], "train.lora.rank"),
        ("pretrain", ["train.lora={rank: 2, alpha: 0}"], "train.lora.alpha"),
        ("pretrain", ["train.lora={rank: 2, targets: []}"], "train.lora.targets"),
        ("pretrain", ["train.lora={rank: 2, targets: ['']}"], "train.lora.targets"),
        ("pretrain", [*VIT, "train.lora.rank=2", "train.optimizer=lars"], "train.optimizer"),
        ("pretrain", ["train.compile=true", "train.gradient_checkpointing=true"], "train.compile"),
    ],
)
def test_what_does_not_go_together(cli: Any, tmp_path: Path, command: str, more: list[str], key: str) -> None:
    result = getattr(cli, command)(tmp_path / "run", *more)
    assert result.code == 2
    assert result.err.startswith(f"sscl: {key}: ")
    assert result.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
