"""The loop: what resumes resumes exactly, what is not finite never reaches the weights, stages do what they say."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tiny_recipe import TinyConfig, TinyRecipe

from elastivid.core.errors import UnknownNameError
from elastivid.train.checkpoint import config_of_run, load_checkpoint, load_weights
from elastivid.train.log import read_lines
from elastivid.train.loop import train
from elastivid.train.recipe import Exported
from elastivid.train.stages import Stage, TrainingError


def trained(folder: Path, recipe=None, **options):
    """A run on the CPU."""
    return train(recipe or TinyRecipe(), folder, device="cpu", **options)


def state(folder: Path):
    """Last checkpoint, its times left out."""
    found = load_checkpoint(folder / "last.pt")
    found.pop("seconds")
    return found


def same(one, other) -> bool:
    """Whether two checkpoints are bit for bit the same."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_run_is_repeatable_and_stopping_after_every_few_steps_changes_nothing(tmp_path):
    whole = trained(tmp_path / "whole")
    assert whole.complete
    assert whole.step == 19
    count, finished = 0, None

    def stop() -> bool:
        nonlocal count
        count += 1
        return count % 3 == 0

    while finished is None or not finished.complete:
        finished = trained(tmp_path / "pieces", resume=True, should_stop=stop)
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        assert (tmp_path / "pieces" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert same(state(tmp_path / "pieces"), state(tmp_path / "whole"))
    assert [line["step"] for line in read_lines(tmp_path / "whole" / "metrics.jsonl")] == [3, 6, 7, 9, 12, 15, 18, 19]
    assert len(read_lines(tmp_path / "whole" / "evaluation.jsonl")) == 1
    assert not same(state(tmp_path / "whole"), state_of_other_seed(tmp_path))


def state_of_other_seed(tmp_path):
    """A run that must differ, or the comparison above says nothing."""
    trained(tmp_path / "other", TinyRecipe(replace(TinyConfig(), seed=1)))
    return state(tmp_path / "other")


def test_lines_after_the_checkpoint_are_written_again_and_half_a_line_is_cut(tmp_path):
    trained(tmp_path / "whole")
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count == 5

    trained(tmp_path / "killed", should_stop=stop)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 1.0}) + '\n{"step": 9, "lo')
    trained(tmp_path / "killed", resume=True)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert lines[0] == lines[1]


def test_workers_and_micro_batches_see_the_same_samples(tmp_path):
    config = replace(TinyConfig(), dropout=0.0)
    one = trained(tmp_path / "one", TinyRecipe(config))
    workers = trained(tmp_path / "workers", TinyRecipe(replace(config, num_workers=2)))
    micro = trained(tmp_path / "micro", TinyRecipe(replace(config, accumulate=2)))
    for a, b, c in zip(*(list(f.module.parameters()) for f in (one, workers, micro)), strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c, atol=1e-6)


def test_frozen_parameters_stay_bit_for_bit(tmp_path):
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count == 4

    torch.manual_seed(0)
    stopped = trained(tmp_path, should_stop=stop)
    assert not stopped.complete
    torch.manual_seed(0)
    recipe = TinyRecipe()
    begin = load_checkpoint(tmp_path / "last.pt")["module"]
    finished = trained(tmp_path, recipe, resume=True).module.state_dict()
    assert torch.equal(begin["unused.weight"], finished["unused.weight"])
    assert not torch.equal(begin["body.0.weight"], finished["body.0.weight"])


class Cheating(TinyRecipe):
    """Writes to a parameter that the stage does not train."""

    def step(self, module, batch, stage, draws):
        with torch.no_grad():
            module.unused.weight += 1
        return super().step(module, batch, stage, draws)


class Idle(TinyRecipe):
    """Trains a parameter that the loss does not depend on."""

    def stages(self):
        return (Stage("all", 3, 1e-2),)


class Constant(TinyRecipe):
    """Trains a parameter whose gradient is zero."""

    def stages(self):
        return (Stage("all", 3, 1e-2, weight_decay=0.0),)

    def step(self, module, batch, stage, draws):
        loss, parts = super().step(module, batch, stage, draws)
        return loss + 0.0 * sum(p.sum() for p in module.unused.parameters()), parts


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Cheating, r"stage 'head' changed 1 parameters that it does not train: unused.weight"),
        (Idle, r"trains 2 parameters that the loss does not depend on: unused.weight, unused.bias"),
        (Constant, r"trained 2 parameters that did not change: unused.weight, unused.bias"),
    ],
)
def test_a_stage_that_does_not_do_what_it_says_is_an_error(recipe, message, tmp_path):
    with pytest.raises(TrainingError, match=message):
        trained(tmp_path, recipe())


@dataclass(frozen=True)
class BadConfig(TinyConfig):
    """Steps whose loss is not finite."""

    bad_steps: tuple[int, ...] = ()
    bad_value: float = float("nan")


class Bad(TinyRecipe):
    """Has steps whose gradient is not finite."""

    config_class = BadConfig
    seen = -1

    def step(self, module, batch, stage, draws):
        Bad.seen += 1
        loss, parts = super().step(module, batch, stage, draws)
        return (loss * self.config.bad_value if Bad.seen in self.config.bad_steps else loss), parts


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_skipped_and_named(value, tmp_path):
    Bad.seen = -1
    finished = trained(tmp_path, Bad(BadConfig(bad_steps=(4, 5, 9), bad_value=value)))
    assert all(torch.isfinite(p).all() for p in finished.module.parameters())
    lines = read_lines(tmp_path / "metrics.jsonl")
    skipped = [line for line in lines if "positions" in line]
    assert [(line["step"], line["positions"]) for line in skipped] == [(5, [16, 20]), (6, [20, 24]), (10, [8, 12])]
    assert lines[-1]["skipped"] == 3


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path):
    Bad.seen = -1
    config = BadConfig(bad_steps=tuple(range(8, 30)), max_skipped=4)
    with pytest.raises(
        TrainingError, match=r"4 steps in a row .* step 12 \(stage 'all', positions 16 to 19\).*metrics.jsonl"
    ):
        trained(tmp_path, Bad(config))
    assert all(torch.isfinite(v).all() for v in load_checkpoint(tmp_path / "last.pt")["module"].values())


def test_resuming_with_other_settings_is_refused_and_named(tmp_path):
    trained(tmp_path)
    with pytest.raises(TrainingError, match=r"already holds a run; go on with it \(--resume\)"):
        trained(tmp_path)
    other = TinyRecipe(replace(TinyConfig(), hidden=9, batch_size=2))
    with pytest.raises(TrainingError, match=r"before -> now: batch_size: 4 -> 2; hidden: 8 -> 9"):
        trained(tmp_path, other, resume=True)
    assert config_of_run(tmp_path, TinyRecipe) == TinyConfig()


class Unbuildable(TinyRecipe):
    def build(self):
        raise TrainingError("there is no teacher")


def test_a_run_that_cannot_be_built_leaves_nothing_behind_and_takes_nothing_away(tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    with pytest.raises(TrainingError, match="no teacher"):
        trained(folder, Unbuildable())
    assert not folder.exists()
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="no teacher"):
        trained(other, Unbuildable())
    assert [path.name for path in other.iterdir()] == ["notes.txt"]
    trained(folder)
    before = (folder / "run.json").read_bytes()
    with pytest.raises(TrainingError):
        trained(folder, Unbuildable(), resume=True)
    assert (folder / "run.json").read_bytes() == before


def test_a_run_by_the_clock_ends_and_resumes(tmp_path):
    recipe = TinyRecipe(replace(TinyConfig(), minutes=0.005))
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count == 4

    assert not trained(tmp_path, recipe, should_stop=stop).complete
    finished = trained(tmp_path, recipe, resume=True)
    assert finished.complete
    assert finished.seconds >= 0.3
    assert {line["stage"] for line in read_lines(tmp_path / "metrics.jsonl")} == {"head", "all"}


def test_weights_of_a_run_load_strictly(tmp_path):
    finished = trained(tmp_path)
    fresh = TinyRecipe().build()
    assert load_weights(fresh, tmp_path) == 19
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), finished.module.parameters(), strict=True))
    with pytest.raises(TrainingError, match=r"misshapen \[.*'body.0.weight: file \(8, 6\), model \(5, 6\)'"):
        load_weights(TinyRecipe(TinyConfig(hidden=5)).build(), tmp_path)
    with pytest.raises(TrainingError, match="no checkpoint at"):
        load_weights(fresh, tmp_path / "nowhere")
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match="cannot read the checkpoint"):
        load_weights(fresh, tmp_path)


class Misnamed(TinyRecipe):
    """A pattern with a spelling mistake."""

    def stages(self):
        return (Stage("all", 3, 1e-2, trained=("hed.*",)),)


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path):
    with pytest.raises(UnknownNameError, match=r"parameter pattern of stage 'all' 'hed.\*'.*head.weight"):
        trained(tmp_path, Misnamed())


class Slope(torch.nn.Module):
    """Two blocks of one number each and a head: a loss that is their sum has the same gradient in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.ParameterList([torch.zeros(1)]) for _ in range(2))
        self.head = torch.nn.ParameterList([torch.zeros(1)])


class SlopeRecipe(TinyRecipe):
    def build(self):
        return Slope()

    def stages(self):
        return (Stage("down", 12, 1e-2, warmup_steps=3, final_share=0.1, layer_decay=0.5),)

    def step(self, module, batch, stage, draws):
        return sum(p.sum() for p in module.parameters()), {}

    def evaluate(self, module):
        return []

    def exported(self, module):
        return Exported(torch.nn.Linear(1, 1))


def test_every_step_runs_at_the_scheduled_rate_and_lower_blocks_at_their_share_of_it(tmp_path):
    """With a gradient that never changes a step of Adam is as long as its rate, so the way is the sum of the rates."""
    recipe = SlopeRecipe()
    (stage,) = recipe.stages()
    module = trained(tmp_path, recipe).module
    way = sum(stage.learning_rate_at((step + 1) / stage.steps) for step in range(stage.steps))
    assert way < 0.8 * stage.steps * stage.learning_rate
    for parameter, share in ((module.head[0], 1.0), (module.blocks[1][0], 0.5), (module.blocks[0][0], 0.25)):
        assert parameter.item() == pytest.approx(-share * way, rel=1e-4)
