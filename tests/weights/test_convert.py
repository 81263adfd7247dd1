"""Converting checkpoints: strict, told, and without executing anything."""

from __future__ import annotations

import argparse
import errno
import json
import os
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from elastivid.app.cli import app
from elastivid.core.errors import UnknownNameError, WeightsError
from elastivid.models import fluxvit, internvideo2, videomae
from elastivid.weights.convert import (
    convert,
    convertible,
    load_encoder,
    read_checkpoint,
    resized_positions,
    save_encoder,
)
from elastivid.weights.load import build, load, read_metadata
from elastivid.weights.writing import write_weights

TINY = internvideo2.PRESETS["tiny"]


def released(config):
    """A checkpoint as the released code names it, and our model with the same weights."""
    torch.manual_seed(0)
    model = config.build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    back = {
        "cube_proj.": "patch_embed.proj.", "scale1": "ls1.gamma", "scale2": "ls2.gamma", "classifier.": "head.",
        "pool_norm.": "fc_norm.", "pool.q.bias": "clip_projector.cross_attn.q_bias",
        "pool.k.bias": "clip_projector.cross_attn.k_bias", "pool.v.bias": "clip_projector.cross_attn.v_bias",
        "pool.norm_": "clip_projector.norm1_", "pool.": "clip_projector.cross_attn.",
    }  # fmt: skip
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in back.items():
            if name.startswith(ours) or f".{ours}" in name:
                name = name.replace(ours, theirs)
                break
        state[name] = value
    p = config.patch_size
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].reshape(-1, 3, config.tubelet_size, p, p)
    table = torch.cat([state.pop("positions.cls")[None], state.pop("positions.table")])
    return {**state, "pos_embed": table[None]}, model


def clip(frames=4):
    return torch.randn(1, frames, 3, 70, 70, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_a_nested_pickle_becomes_a_file_that_loads(tmp_path):
    state, model = released(TINY)
    source, target = tmp_path / "released.pth", tmp_path / "ours.safetensors"
    torch.save(
        {"model": {f"module.{k}": v for k, v in state.items()}, "args": argparse.Namespace(lr=1), "epoch": 3}, source
    )
    done = CliRunner().invoke(app, ["convert", str(source), "--as", "internvideo2/tiny", "--out", str(target)])
    assert done.exit_code == 0, done.output
    assert "found in   model" in done.output
    assert "reshaped   3:" in done.output  # cubes and both parts of the position table
    assert "cube_proj.weight: 48x3x1x14x14 -> 48x588" in done.output
    again = load_encoder(target)
    assert torch.equal(again(clip()).logits, model(clip()).logits)


@torch.inference_mode()
@pytest.mark.parametrize("frames", [8, 16])
def test_positions_of_other_frame_counts_are_resized(tmp_path, frames):
    state, model = released(replace(TINY, num_frames=frames, num_classes=3))
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    ours, report = convert(tmp_path / "a.pt", "internvideo2/tiny")
    assert report.resized == (("positions.table", (frames, 5, 5), (4, 5, 5)),)
    assert report.settings == {"num_classes": 3}
    assert torch.allclose(ours.positions.table, model.table((4, 5, 5), 48), atol=1e-6)
    assert torch.allclose(ours(clip(4)).logits, model(clip(4)).logits, atol=1e-5)


@torch.inference_mode()
def test_other_sizes_and_several_pools_of_fluxvit(tmp_path):
    config = replace(fluxvit.PRESETS["tiny"], image_size=98, num_pools=3, num_classes=2)
    torch.save(config.build().state_dict(), tmp_path / "a.bin")
    ours, report = convert(tmp_path / "a.bin", "fluxvit/tiny")
    assert report.settings == {"num_classes": 2, "num_pools": 3}
    assert report.resized == (("positions", (8, 7, 7), (8, 5, 5)),)
    assert ours.positions.shape == (1, 201, 48)


def test_what_does_not_fit_is_listed_and_nothing_is_written(tmp_path):
    state, _ = released(TINY)
    state["surprise"] = state.pop("blocks.1.norm1.weight")
    state["head.weight"] = state["head.weight"][:, :3]
    source, target = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save(state, source)
    with pytest.raises(WeightsError) as error:
        convert(source, "internvideo2/tiny")
    told = str(error.value)
    assert "missing in the file (1):\n    blocks.1.norm1.weight" in told
    assert "left over (1):\n    surprise" in told
    assert "classifier.weight: (5, 3) in the file, (5, 32) in the model" in told
    done = CliRunner().invoke(app, ["convert", str(source), "--as", "internvideo2/tiny", "--out", str(target)])
    assert done.exit_code != 0
    assert list(tmp_path.iterdir()) == [source]


def test_settings_fit_a_preset_to_its_checkpoint(tmp_path):
    config = replace(videomae.PRESETS["tiny"], positions="learned", depth=2)
    state = config.build().state_dict()
    torch.save({**state, "pos_embed": state.pop("positions")[None]}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="left over"):
        convert(tmp_path / "a.pth", "videomae/tiny")
    arguments = ["convert", str(tmp_path / "a.pth"), "--as", "videomae/tiny", "--out", str(tmp_path / "b.safetensors")]
    done = CliRunner().invoke(app, [*arguments, "--set", "positions=learned", "--set", "depth=2", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["address"] == "videomae/tiny"
    assert load_encoder(tmp_path / "b.safetensors").config == config


def test_a_pre_training_checkpoint_gives_its_encoder_and_tells_the_rest(tmp_path):
    config = videomae.PRETRAINING["tiny"]
    state = {}
    for name, value in config.build().state_dict().items():
        name = name.replace("decoder.mask_token", "mask_token").replace("decoder.project.", "encoder_to_decoder.")
        state[name] = value
    torch.save({"module": state}, tmp_path / "a.pth")
    model, report = convert(tmp_path / "a.pth", "videomae/tiny")
    assert "mask_token" in report.left_out
    assert report.settings == {"num_classes": 0}
    assert torch.equal(model.norm.weight, state["encoder.norm.weight"])
    assert ("encoder.norm.weight", "norm.weight") in report.renamed


class Hostile:
    """A pickle that would run something."""

    def __reduce__(self):
        return (open, ("/dev/null",))


def test_nothing_in_a_pickle_is_executed(tmp_path):
    torch.save({"model": Hostile()}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="never executed here"):
        read_checkpoint(tmp_path / "a.pth")


def test_files_that_hold_no_weights_are_refused(tmp_path):
    for content, message in (([1, 2], "holds a list"), ({"epoch": 1}, "holds no tensors .* it has epoch")):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(WeightsError, match=message):
            read_checkpoint(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match=r"b\.pth"):
        read_checkpoint(tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "c.pth")
    torch.save({"ema": {"a": torch.ones(1)}, "model": {"a": torch.zeros(1)}}, tmp_path / "d.pth")
    assert float(read_checkpoint(tmp_path / "d.pth")[0]["a"]) == 0
    assert float(read_checkpoint(tmp_path / "d.pth", "ema")[0]["a"]) == 1
    with pytest.raises(UnknownNameError, match="known: ema, model"):
        read_checkpoint(tmp_path / "d.pth", "emma")


def test_names_of_families_and_presets(tmp_path):
    assert {"fluxvit", "internvideo2", "mvd", "timesformer", "umt", "videomae"} <= set(convertible())
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(UnknownNameError, match="internvideo2"):
        convert(tmp_path / "a.pth", "internvideo/small")
    with pytest.raises(UnknownNameError, match="preset of internvideo2"):
        convert(tmp_path / "a.pth", "internvideo2/smal")
    done = CliRunner().invoke(
        app, ["convert", str(tmp_path / "a.pth"), "--as", "umt/tiny", "--out", str(tmp_path / "a.pth")]
    )
    assert done.exit_code != 0


def test_a_file_of_ours_needs_no_conversion_and_an_encoder_answers_no_words(tmp_path):
    path = tmp_path / "ours.safetensors"
    save_encoder(build("videomae/tiny"), path, address="videomae/tiny", licence="unknown", card={})
    arguments = ["convert", str(path), "--as", "videomae/tiny", "--out", str(tmp_path / "again.safetensors")]
    refused = CliRunner().invoke(app, arguments).exception
    assert isinstance(refused, WeightsError)
    assert "is a weights file of elastivid already (videomae/tiny); use it as it is" in str(refused)
    with pytest.raises(WeightsError, match="a videomae encoder has neither a text tower nor names of classes"):
        load(str(path))


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": torch.zeros(2)}, {"address": "first"})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_weights(path, {"a": torch.ones(2)}, {"address": "second"})
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    assert read_metadata(path) == {"address": "first"}
    with pytest.raises(OSError, match=r"cannot write .*absent/w\.safetensors"):
        write_weights(tmp_path / "absent" / "w.safetensors", {"a": torch.ones(2)}, {"address": "third"})


def test_only_positions_are_resized():
    value = torch.arange(100.0)[:, None].expand(-1, 8)
    assert resized_positions("blocks.0.norm.weight", value, (25, 8), (1, 5, 5)) is None
    table, there, here = resized_positions("positions", value, (50, 8), (2, 5, 5))
    assert (there, here) == ((4, 5, 5), (2, 5, 5))
    assert torch.allclose(table[0], torch.full((8,), 12.5))
    assert resized_positions("positions", value[:97], (50, 8), (2, 5, 5)) is None
