"""The dual encoder: one space for clips, images and texts, and the file it is kept in."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from elastivid.core.errors import PointError, UnknownNameError, WeightsError
from elastivid.core.point import OperatingPoint
from elastivid.models.dual import FluxDualConfig
from elastivid.models.fluxvit import PRESETS
from elastivid.models.text import TextConfig
from elastivid.search.text import TextEncoder
from elastivid.weights.load import build, families, load, read_metadata, resolve, save


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    video = replace(PRESETS["tiny"], pool_dim=128, layer_scale=1.0)
    return FluxDualConfig(video, TextConfig(output_dim=128)).build().eval()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(model, path, address="dual/tiny@test", licence="Apache-2.0", card={"trained": "not at all"})
    return path


def clips(batch=2, frames=4, size=56):
    return torch.randn(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def test_everything_is_a_unit_vector_of_one_space(model):
    for vectors in (
        model.embed_clips(clips()),
        model.embed_clips(clips(), point=OperatingPoint(tokens=9)),
        model.embed_images(clips()[:, 0]),
        model.embed_texts(["a red circle moves left", ""]),
    ):
        assert vectors.shape == (2, model.dim)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)


@torch.inference_mode()
def test_an_image_is_a_clip_of_one_frame(model):
    assert torch.equal(model.embed_images(clips()[:, 0]), model.embed_clips(clips()[:, :1]))
    with pytest.raises(PointError, match=r"images must have shape \(B, 3, H, W\)"):
        model.embed_images(clips())


@torch.inference_mode()
def test_a_budget_above_the_tokens_at_hand_keeps_them_all(model):
    assert torch.equal(model.embed_clips(clips(), point=OperatingPoint(tokens=9999)), model.embed_clips(clips()))


def test_cost_counts_the_tokens_that_are_kept(model):
    few, many = (model.cost(frames=8, size=70, point=OperatingPoint(tokens=n)).macs for n in (20, 100))
    assert few < many < model.cost(frames=8, size=70).macs
    assert model.cost(frames=8, size=70, point=OperatingPoint(tokens=9999)) == model.cost(frames=8, size=70)


def test_the_space_changes_with_any_weight(model):
    before = model.space_id
    with torch.no_grad():
        model.video.pool_norm.bias[0] += 1
    changed = model.space_id
    with torch.no_grad():
        model.video.pool_norm.bias[0] -= 1
    assert before != changed
    assert model.space_id == before


@torch.inference_mode()
def test_saved_and_loaded_is_the_same(model, saved):
    loaded = load(str(saved))
    assert loaded.space_id == model.space_id == read_metadata(saved)["space_id"]
    assert torch.equal(loaded.embed_clips(clips()), model.embed_clips(clips()))
    assert loaded.transform == model.transform
    assert read_metadata(saved)["licence"] == "Apache-2.0"


@torch.inference_mode()
def test_texts_without_torch_are_equal(model, saved):
    texts = ["a blue star spins, then moves up", "someone waves"]
    encoder = TextEncoder.from_file(saved)
    assert encoder.space_id == model.space_id
    assert np.abs(encoder.embed(texts) - model.embed_texts(texts).numpy()).max() < 1e-5


def rewritten(saved, path, change):
    with safe_open(saved, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(saved)
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    return str(path)


def test_damaged_files_are_refused(saved, tmp_path):
    path = tmp_path / "bad.safetensors"
    with pytest.raises(WeightsError, match=r"missing \['log_scale'\]"):
        load(rewritten(saved, path, lambda t, m: t.pop("log_scale")))
    with pytest.raises(WeightsError, match=r"unknown \['extra'\]"):
        load(rewritten(saved, path, lambda t, m: t.update(extra=torch.zeros(1))))
    with pytest.raises(WeightsError, match="log_scale: file"):
        load(rewritten(saved, path, lambda t, m: t.update(log_scale=torch.zeros(2))))
    with pytest.raises(WeightsError, match="golden clip embeds"):
        load(rewritten(saved, path, lambda t, m: t["video.pools.0.proj.weight"].neg_()))
    with pytest.raises(WeightsError, match="golden clip embeds nan away"):
        load(rewritten(saved, path, lambda t, m: t["video.pools.0.proj.weight"].fill_(float("nan"))))
    with pytest.raises(WeightsError, match="golden clip embeds inf away"):
        load(rewritten(saved, path, lambda t, m: m.update(golden="[1.0]")))
    with pytest.raises(WeightsError, match=r"have space \w{16}, but it says"):
        load(rewritten(saved, path, lambda t, m: t["text.table"][0].add_(1)))
    with pytest.raises(WeightsError, match="is not json"):
        load(rewritten(saved, path, lambda t, m: m.update(config="{")))
    for change in ({"transform": "[]"}, {"config": '{"video": {}}'}, {"config": '{"video": {"wings": 2}, "text": {}}'}):
        with pytest.raises(WeightsError, match="does not describe a dual encoder"):
            load(rewritten(saved, path, lambda t, m, change=change: m.update(change)))
    with pytest.raises(WeightsError, match="no elastivid metadata"):
        load(rewritten(saved, path, lambda t, m: m.pop("address")))
    path.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot read weights"):
        load(str(path))


def test_names_resolve_or_say_what_there_is(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown weights .* 'nanoo'.*Did you mean 'nano'"):
        resolve("nanoo")
    with pytest.raises(WeightsError, match="no weights file at"):
        resolve(str(tmp_path / "none.safetensors"))
    assert {"fluxvit", "dual"} <= set(families())
    assert build("fluxvit/tiny").config == PRESETS["tiny"]
    with pytest.raises(UnknownNameError, match="fluxvit"):
        build("fluxvitt/tiny")
    with pytest.raises(UnknownNameError, match="unknown preset of fluxvit 'tinny'"):
        build("fluxvit/tinny")


def test_towers_must_agree_on_the_space():
    with pytest.raises(ValueError, match=r"video.pool_dim=32 and text.output_dim=256"):
        FluxDualConfig(video=PRESETS["tiny"], text=TextConfig())


def test_config_survives_json(saved):
    config = read_metadata(saved)["config"]
    assert json.loads(json.dumps(config)) == config


@torch.inference_mode()
def test_a_narrow_copy_lives_in_the_same_space(model, saved, tmp_path):
    whole, path = load(str(saved)), tmp_path / "narrow.safetensors"
    point = OperatingPoint(width=(36, 24, 24))
    narrow = whole.at(point)
    assert narrow.space_id == whole.space_id
    assert narrow.weights_id != whole.weights_id
    assert torch.allclose(narrow.embed_clips(clips()), whole.embed_clips(clips(), point=point), atol=1e-6)
    assert torch.equal(narrow.embed_texts(["a red circle"]), whole.embed_texts(["a red circle"]))
    assert narrow.cost(frames=4, size=56).macs == whole.cost(frames=4, size=56, point=point).macs
    save(narrow, path, address="dual/tiny@narrow", licence="Apache-2.0", card={})
    assert path.stat().st_size < saved.stat().st_size
    loaded = load(str(path))
    assert loaded.space_id == whole.space_id == TextEncoder.from_file(path).space_id
    assert torch.equal(loaded.embed_clips(clips()), narrow.embed_clips(clips()))
    assert loaded.at(OperatingPoint(width=12)).space_id == whole.space_id
    with torch.no_grad():
        loaded.video.cls_token.add_(1)  # training on makes a space of its own
    assert loaded.space_id == loaded.weights_id != whole.space_id
    with pytest.raises(WeightsError, match=r"have space \w{16}, but it says"):
        load(rewritten(path, tmp_path / "bad.safetensors", lambda t, m: t["text.table"][0].add_(1)))


def test_a_part_of_a_model_that_was_never_saved_cannot_keep_its_space(tmp_path):
    torch.manual_seed(1)
    video = replace(PRESETS["tiny"], pool_dim=128)
    narrow = FluxDualConfig(video, TextConfig(output_dim=128)).build().at(OperatingPoint(width=24))
    with pytest.raises(WeightsError, match="save the whole model first"):
        save(narrow, tmp_path / "no.safetensors", address="x", licence="MIT", card={})
    assert not (tmp_path / "no.safetensors").exists()


@torch.inference_mode()
def test_another_precision_keeps_the_space_and_nearly_the_vectors(saved, tmp_path):
    exact, cast = load(str(saved)), load(str(saved)).cast("bfloat16")
    assert cast.space_id == exact.space_id
    assert cast.video.cls_token.dtype == torch.bfloat16
    for point in (OperatingPoint(), OperatingPoint(tokens=32, width=24)):
        vectors = cast.embed_clips(clips(), point=point)
        assert vectors.dtype == torch.float32
        assert (vectors * exact.embed_clips(clips(), point=point)).sum(-1).min() > 0.999
    assert torch.equal(cast.embed_texts(["a red circle"]), exact.embed_texts(["a red circle"]))
    assert cast.at(OperatingPoint(width=24)).space_id == exact.space_id
    with pytest.raises(WeightsError, match=r"save needs weights in float32, got torch\.bfloat16"):
        save(cast, tmp_path / "no.safetensors", address="x", licence="MIT", card={})
    with pytest.raises(PointError, match="precision must be one of"):
        exact.cast("int3")


def test_a_token_is_embedded_as_if_it_were_the_whole_clip(model):
    x = torch.randn(2, 5, model.config.video.embed_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        vectors = model.embed_tokens(x)
        alone = model.video.pool_norm(model.video.pools[0](x[1, 3][None, None]))
    assert vectors.shape == (2, 5, model.dim)
    assert torch.allclose(vectors[1, 3], torch.nn.functional.normalize(alone[0], dim=-1), atol=1e-6)


def test_a_text_selects_tokens(model):
    from elastivid.select.text import TextGuided

    tokens = model.video.embed(torch.randn(1, 2, 3, 56, 56, generator=torch.Generator().manual_seed(0)))
    asked = TextGuided.asking(model, "a red circle", project=model.embed_tokens)
    assert asked.reduce(tokens, 9).num_placed == 9
    with pytest.raises(PointError, match="must not be empty"):
        TextGuided.asking(model, "")
