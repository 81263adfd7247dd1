"""Settings, stages, parameter groups and the order of samples, each by itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from elastivid.core.errors import MissingExtraError, PointError, UnknownNameError
from elastivid.models.fluxvit import PRESETS
from elastivid.train.devices import accelerator_for, moved
from elastivid.train.optim import Adam, layers_of, parameter_groups
from elastivid.train.order import Epochs, StepBatches, mixed
from elastivid.train.settings import SettingError, changed, differences, fingerprint, from_values, to_values
from elastivid.train.stages import Stage, set_modes, trained_names
from elastivid.train.window import Window


@dataclass(frozen=True)
class Inner:
    """Nested settings."""

    depth: int = 2


@dataclass(frozen=True)
class Settings:
    """A setting of every type."""

    count: int = 1
    rate: float = 0.5
    name: str = "a"
    on: bool = False
    place: Path | None = None
    sizes: tuple[int, ...] = (1,)
    pairs: tuple[tuple[int, int], ...] = ()
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must be >= 0, got {self.count}")
        if self.on and self.count < 3:
            raise ValueError("on needs a count of 3")


def test_settings_are_read_by_their_type():
    made = changed(
        Settings(),
        ["on=true", "count=3", "rate=2", "name=7", "place=runs/x", "sizes=4", "pairs=(8,112),(4,56)", "inner.depth=9"],
    )
    assert made == Settings(3, 2.0, "7", True, Path("runs/x"), (4,), ((8, 112), (4, 56)), Inner(9))
    assert isinstance(made.rate, float)
    assert changed(made, ["place=none", "pairs=8,112"]) == Settings(
        3, 2.0, "7", True, None, (4,), ((8, 112),), Inner(9)
    )
    assert from_values(Settings, to_values(made)) == made


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("count", "a setting is key=value, got 'count'"),
        ("count=1.5", "count takes a whole number, got 1.5"),
        ("count=true", "count takes a whole number, got True"),
        ("on=1", "on takes true or false, got 1"),
        ("rate=fast", "rate takes a number, got 'fast'"),
        ("pairs=(1,2,3),", "pairs takes 2 values"),
        ("inner=3", "inner holds settings of its own; set one of inner.depth"),
        ("count.x=3", "count has no fields of its own"),
        ("count=-1", "count must be >= 0, got -1"),
        ("sizes=1,x", "sizes takes a whole number, got 'x'|sizes takes a whole number, got '1,x'"),
    ],
)
def test_settings_that_do_not_fit_are_errors(assignment, message):
    with pytest.raises(SettingError, match=message):
        changed(Settings(), [assignment])


def test_an_unknown_setting_lists_the_closest():
    with pytest.raises(UnknownNameError, match=r"unknown setting of Settings 'cuont'.*Did you mean 'count'"):
        changed(Settings(), ["cuont=1"])
    with pytest.raises(UnknownNameError, match=r"'dept'.*depth"):
        changed(Settings(), ["inner.dept=1"])


def test_differences_and_fingerprint():
    one, two = to_values(Settings()), to_values(changed(Settings(), ["count=2", "inner.depth=3"]))
    assert differences(one, two) == ["count: 1 -> 2", "inner.depth: 2 -> 3"]
    assert differences(one, one) == []
    assert fingerprint("a", one) == fingerprint("a", to_values(Settings()))
    assert len({fingerprint("a", one), fingerprint("a", two), fingerprint("b", one)}) == 3


def test_the_rate_rises_to_the_peak_and_falls_to_its_end():
    stage = Stage("s", 10, 2.0, warmup_steps=4, final_share=0.1)
    rates = [stage.learning_rate_at((k + 1) / 10) for k in range(10)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[-1] == pytest.approx(0.2)
    assert rates[6] == pytest.approx(0.2 + 1.8 * 0.5)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert Stage("s", 5, 1.0).learning_rate_at(1.0) == pytest.approx(0.0)
    with pytest.raises(ValueError, match=r"stage 's': learning_rate must be > 0, got 0"):
        Stage("s", 5, 0)


def test_patterns_add_and_take_out():
    names = ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert trained_names(Stage("s", 1, 1, trained=("*",)), names) == names
    assert trained_names(Stage("s", 1, 1, trained=("!b.*",)), names) == names[:2]
    assert trained_names(Stage("s", 1, 1, trained=("b.*", "a.*", "!*.bias")), names) == ["a.weight", "b.weight"]
    with pytest.raises(UnknownNameError, match=r"'c\.\*'"):
        trained_names(Stage("s", 1, 1, trained=("c.*",)), names)


def test_layers_of_towers():
    module = nn.ModuleDict({"video": PRESETS["tiny"].build(), "head": nn.Linear(2, 2)})
    layers = layers_of([name for name, _ in module.named_parameters()])
    assert layers["video.cls_token"] == (0, 4)
    assert layers["video.patch_embed.proj.weight"][0] == 0
    assert [layers[f"video.blocks.{k}.attn.qkv.weight"][0] for k in range(3)] == [1, 2, 3]
    assert layers["video.pool_norm.weight"] == (4, 4)
    assert layers["head.weight"] == (0, 0)


def test_groups_have_decays_and_factors_of_their_own():
    module = PRESETS["tiny"].build()
    names = [name for name, p in module.named_parameters()]
    groups = parameter_groups(module, Stage("s", 1, 1.0, layer_decay=0.5, weight_decay=0.1), names)
    place = {name: group for group in groups for name in group["names"]}
    assert sorted(place) == sorted(names)
    assert place["blocks.0.attn.qkv.weight"]["weight_decay"] == 0.1
    for name in ("positions", "cls_token", "blocks.0.scale1", "blocks.1.norm1.weight", "pool_norm.bias"):
        assert place[name]["weight_decay"] == 0.0
    top = place["pool_norm.weight"]["scale"]
    assert top == 1.0
    assert place["blocks.2.attn.qkv.weight"]["scale"] == 2 * place["blocks.1.attn.qkv.weight"]["scale"]
    assert place["positions"]["scale"] < place["blocks.0.scale1"]["scale"]


def test_moments_follow_their_names_into_the_next_stage():
    module = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    first = Adam(module, Stage("s", 1, 0.1), ["a.weight"])
    for _ in range(3):
        module["a"](torch.ones(1, 2)).sum().backward()
        first.step(0.1)
    second = Adam(module, Stage("t", 1, 0.1), ["a.weight", "b.weight"], first.state())
    moments = second.optimizer.state[module["a"].weight]
    assert moments["step"] == 3
    assert torch.equal(moments["exp_avg"], first.state()["a.weight"]["exp_avg"])
    assert module["b"].weight not in second.optimizer.state


def test_frozen_parts_are_in_evaluation_mode():
    module = nn.ModuleDict(
        {"a": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), "b": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))}
    )
    set_modes(module, ["b.0.weight", "b.0.bias"])
    assert (module["a"].training, module["a"][1].training) == (False, False)
    assert (module["b"].training, module["b"][1].training) == (True, True)


@pytest.mark.parametrize(("accumulate", "processes"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_every_position_is_seen_once_and_in_order(accumulate, processes):
    parts = [list(StepBatches(2, 5, 12, accumulate, rank, processes)) for rank in range(processes)]
    assert all(len(part) == len(StepBatches(2, 5, 12, accumulate)) for part in parts)
    seen = [position for micro in zip(*parts, strict=True) for rank in micro for position in rank]
    assert seen == list(range(24, 60))


def test_epochs_go_through_everything_in_changing_order():
    stream = Epochs(range(7), seed=3)
    epochs = [[stream[7 * e + k] for k in range(7)] for e in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [Epochs(range(7), seed=3)[k] for k in range(28)] == [item for epoch in epochs for item in epoch]
    drawn = Epochs(range(7), seed=3, draw=lambda item, rng: (item, rng.random()))
    assert drawn[2] == drawn[2]
    assert len({drawn[k][1] for k in range(21)}) == 21
    with pytest.raises(ValueError, match="without items"):
        Epochs([], seed=0)


def test_seeds_of_near_numbers_are_unrelated():
    seeds = {mixed(seed, stage, step) for seed in range(5) for stage in range(5) for step in range(40)}
    assert len(seeds) == 1000
    assert abs(np.log2([s + 1 for s in seeds]).mean() - 61.6) < 0.3


def test_what_training_needs_is_named_when_it_is_missing(monkeypatch):
    with pytest.raises(PointError, match="device must be one of auto, cpu, cuda, got 'tpu'"):
        accelerator_for("tpu", "auto")
    if not torch.cuda.is_available():
        with pytest.raises(PointError, match="torch sees no GPU here; use --device cpu"):
            accelerator_for("cuda", "auto")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'elastivid\[train\]'"):
        accelerator_for("cpu", "auto")


def test_batches_move_with_everything_in_them():
    batch = {"a": torch.ones(2), "b": [torch.ones(1), "text"], "c": (3, torch.ones(1))}
    there = moved(batch, torch.device("meta"))
    assert there["a"].is_meta
    assert there["b"][0].is_meta
    assert (there["b"][1], there["c"][0], there["c"][1].is_meta) == ("text", 3, True)


def test_a_window_means_what_was_added_and_survives_a_checkpoint():
    window = Window()
    assert window.means() == window.times(4) == {}
    window.add({"loss": 2.0})
    window.add({"loss": 4.0})
    window.add_time(0.5)
    window.waiting_seconds += 0.1
    assert window.means() == {"loss": 3.0}
    assert window.times(4) == {"seconds_per_step": 0.5, "loading_share": 0.2, "samples_per_second": 8.0}
    other = Window()
    other.restore(window.state())
    other.add({"loss": 9.0})
    assert other.means() == {"loss": 5.0}
