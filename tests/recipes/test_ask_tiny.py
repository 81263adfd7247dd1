"""The recipe of the tiny video language model: a smoke run leaves a model that loads and answers."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from elastivid.recipes import find, summaries
from elastivid.recipes.ask_tiny import AskTiny, AskTinyConfig
from elastivid.train.loop import train
from elastivid.train.settings import from_values, to_values
from elastivid.weights.load import load_asker


@pytest.mark.slow
def test_a_smoke_run_leaves_a_model_that_loads(tmp_path):
    recipe = AskTiny(replace(AskTiny.smoke(AskTinyConfig()), cache=tmp_path / "stock"))
    finished = train(recipe, tmp_path / "run", device="cpu")
    assert finished.complete
    assert [row["point"] for row in finished.rows] == ["12 chunks", "48 chunks", "240 chunks"]
    assert all(0 <= row["accuracy"] <= 1 and row["gmacs"] > 0 for row in finished.rows)
    model = load_asker(str(tmp_path / "run" / "model.safetensors"))
    assert model.config.encoder_space == model.encoder.space_id
    assert sum(p.numel() for p in model.parameters()) < 4_000_000


def test_samples_depend_on_their_position_only(tmp_path):
    recipe = AskTiny(replace(AskTiny.smoke(AskTinyConfig()), cache=tmp_path))
    drawn = recipe.dataset(recipe.stages()[0])
    assert drawn[3]["text"] == drawn[3]["text"]
    assert (drawn[3]["visual"] == drawn[3]["visual"]).all()
    assert drawn[3]["text"] != recipe.dataset(recipe.stages()[1])[3]["text"]
    assert len({drawn[n]["visual"].shape for n in (4, 5)}) == 1  # a batch of two shares its length
    batch = recipe.collate([drawn[4], drawn[5]])
    assert batch["visual"].ndim == 4
    assert batch["answers"][:, 0].eq(0).all()


def test_its_docstring_says_how_it_is_run():
    text = inspect.getdoc(inspect.getmodule(find("ask_tiny")))
    assert "elastivid train ask_tiny" in text
    assert "Full scale" in text
    assert summaries()["ask_tiny"] == text.splitlines()[0]
    assert from_values(AskTinyConfig, to_values(AskTinyConfig())) == AskTinyConfig()
