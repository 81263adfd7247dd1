"""Checkpoints of the hub: equal to transformers, refused where they should be, searched like any other model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra hf")

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))
import av
import huggingface_hub
from hub_checkpoints import KINDS, TEXTS, full_model, processor, save_checkpoint
from safetensors.torch import load_file, save_file
from worlds import render

from elastivid import Index, OperatingPoint, Sampling, load
from elastivid.app.info import describe
from elastivid.core.cost import measured_macs
from elastivid.core.errors import MissingExtraError, PointError, WeightsError
from elastivid.search.indexing import embed_windows
from elastivid.search.reading import Reading
from elastivid.search.records import LibraryError
from elastivid.select.frames import ChangingFrames, UniformFrames
from elastivid.select.motion import GroupDynamic
from elastivid.video import VideoReader
from elastivid.weights import hub
from elastivid.weights.licence import is_permissive

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    return {kind: save_checkpoint(root / kind, kind) for kind in KINDS}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(folders, kind):
    return load(f"hf:{folders[kind]}")


def pictures(*shapes, seed=0, noise=20):
    """Smooth pictures (H, W, 3) with noise on top, as uint8."""
    rng = np.random.default_rng(seed)
    found = []
    for height, width in shapes:
        y, x = np.mgrid[:height, :width]
        waves = np.stack([np.sin(x / 7 + y / 9), np.cos(x / 5), np.sin(y / 11)], axis=-1) * 90 + 128
        found.append(np.clip(waves + rng.normal(0, noise, waves.shape), 0, 255).astype(np.uint8))
    return found


SHAPES = ((70, 91), (91, 70), (48, 48), (200, 130), (33, 180))


def test_pictures_are_prepared_as_the_slow_processor_does(folders, kind, model):
    """Pillow and torch round differently in the last bit: a grey level or two, in under two pixels of a hundred."""
    reference = processor(folders[kind], kind)
    for picture in pictures(*SHAPES):
        ours = model.transform(picture[None])[0]  # (3, H, W)
        theirs = reference(images=[picture], return_tensors="pt")
        if kind == "siglip2":
            rows, columns = theirs["spatial_shapes"][0].tolist()
            assert ours.shape == (3, rows * 16, columns * 16)
            patches = theirs["pixel_values"][0, : rows * columns].reshape(rows, columns, 16, 16, 3)
            theirs = patches.permute(4, 0, 2, 1, 3).reshape(ours.shape)
        else:
            theirs = theirs["pixel_values"][0]
        levels = (ours - theirs).abs() * 255 * torch.tensor(model.transform.std)[:, None, None]
        assert levels.max() < 2.01
        assert (levels > 0.01).float().mean() < 0.02


@torch.no_grad()
def test_images_equal_those_of_transformers(folders, kind, model):
    reference, prepare = full_model(folders[kind], kind), processor(folders[kind], kind)
    for picture in pictures(*SHAPES):
        inputs = prepare(images=[picture], return_tensors="pt")
        wanted = torch.nn.functional.normalize(reference.get_image_features(**inputs).pooler_output, dim=-1)
        pixels = inputs["pixel_values"]
        if kind == "siglip2":
            rows, columns = inputs["spatial_shapes"][0].tolist()
            patches = pixels[0, : rows * columns].reshape(rows, columns, 16, 16, 3)
            pixels = patches.permute(4, 0, 2, 1, 3).reshape(1, 3, rows * 16, columns * 16)
        torch.testing.assert_close(model.embed_images(pixels), wanted, atol=1e-5, rtol=0)
        assert float(model.embed_images(model.transform(picture[None]))[0] @ wanted[0]) > 0.9999


@torch.no_grad()
def test_texts_equal_those_of_transformers(folders, kind, model):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[kind])
    texts = [text.lower() for text in TEXTS] + ["dog " * 40]
    inputs = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    if kind != "clip":
        inputs = {"input_ids": inputs["input_ids"]}
    else:
        inputs.pop("token_type_ids", None)
    reference = full_model(folders[kind], kind)
    wanted = torch.nn.functional.normalize(reference.get_text_features(**inputs).pooler_output, dim=-1)
    got = model.embed_texts([*TEXTS, "dog " * 40])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert (got[0] - got[1]).abs().max() > 1e-3
    assert model.logit_scale == pytest.approx(float(reference.logit_scale.exp()), rel=1e-6)
    assert model.embed_texts([]).shape == (0, model.dim)
    with pytest.raises(TypeError, match="pass \\[text\\]"):
        model.embed_texts("dog")


def clip_of(model, frames=6):
    side = model.transform.size
    return torch.randn(2, frames, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_a_clip_is_the_mean_of_its_frames(model):
    video = clip_of(model)
    each = torch.stack([model.embed_images(video[:, t]) for t in range(6)], dim=1)  # (B, T, E)
    wanted = torch.nn.functional.normalize(each.mean(1), dim=-1)
    torch.testing.assert_close(model.embed_clips(video), wanted, atol=1e-5, rtol=0)


def test_a_budget_of_tokens_keeps_whole_frames(model):
    video, per_frame = clip_of(model), model.tokens_per_frame
    middle = model.embed_clips(video, point=OperatingPoint(tokens=per_frame))
    torch.testing.assert_close(middle, model.embed_images(video[:, 3]), atol=1e-5, rtol=0)
    three = model.embed_clips(video, point=OperatingPoint(tokens=3 * per_frame + 1))
    torch.testing.assert_close(three, model.embed_clips(video[:, [1, 3, 5]]), atol=1e-5, rtol=0)
    everything = model.embed_clips(video, point=OperatingPoint(tokens=99 * per_frame))
    torch.testing.assert_close(everything, model.embed_clips(video), atol=1e-5, rtol=0)
    for wrong, message in (
        (OperatingPoint(width=8), "has no axis width; it supports selector, tokens"),
        (OperatingPoint(tokens=1, selector=GroupDynamic()), "must be a FrameSelector such as ChangingFrames"),
    ):
        with pytest.raises(PointError, match=message):
            model.embed_clips(video, point=wrong)


def test_changing_frames_are_found_in_every_stretch():
    video = torch.zeros(2, 8, 3, 32, 32)
    video[0, 2:], video[0, 5:] = 1.0, 3.0
    video[1, 3:] = 1.0
    assert ChangingFrames().select(video, 2).tolist() == [[2, 5], [3, 4]]  # nothing changes: the earliest
    assert UniformFrames().select(video, 2).tolist() == [[2, 6], [2, 6]]
    for selector in (ChangingFrames(), UniformFrames()):
        for keep in range(1, 9):
            places = selector.select(video, keep)
            assert places.shape == (2, keep)
            assert (places.diff(dim=1) > 0).all()
        with pytest.raises(PointError, match="cannot keep 9 frames of 8"):
            selector.select(video, 9)


def test_predicted_macs_equal_the_counter(kind, model):
    side, frames = model.transform.size, 3
    shape = (1, frames, 3, side, side) if kind != "siglip2" else (1, frames, 3, 64, 80)  # 4 x 5 of 20 patches
    for tokens in (None, model.tokens_per_frame):
        point = OperatingPoint(tokens=tokens)
        counted = measured_macs(lambda point=point: model.embed_clips(torch.randn(shape), point=point))
        cost = model.cost(frames=frames, size=side, point=point)
        assert cost.macs == pytest.approx(counted, rel=0.02)
    tower = sum(p.numel() for p in model.vision_tower().parameters())
    assert cost.parameter_bytes == 4 * tower


def test_each_tower_is_loaded_when_it_is_needed(folders, kind):
    model = load(f"hf:{folders[kind]}")
    assert list(model.children()) == []
    model.embed_texts(["dog"])
    assert [name for name, _ in model.named_children()] == ["text"]
    assert not any(p.requires_grad for p in model.parameters())


def test_a_space_is_its_files(folders, tmp_path, monkeypatch):
    ours = load(f"hf:{folders['clip']}").space_id
    copy = save_checkpoint(tmp_path / "copy", "clip")
    assert load(f"hf:{copy}").space_id == ours
    assert load(f"hf:{save_checkpoint(tmp_path / 'other', 'clip', seed=1)}").space_id != ours
    values = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({**values, "resample": 2}))
    assert load(f"hf:{copy}").space_id != ours


def test_large_files_are_hashed_once(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HASHED_EACH_TIME_BYTES", 1000)
    copy = save_checkpoint(tmp_path / "copy", "siglip")
    first = hub.space_of(copy)
    known = json.loads((tmp_path / "cache" / "elastivid" / "hashes.json").read_text())
    assert str(copy / "model.safetensors") in known
    monkeypatch.setattr(hub.hashlib, "file_digest", lambda file, name: pytest.fail(f"hashed {file.name} again"))
    monkeypatch.setattr(hub, "FILES", ())
    with pytest.raises(pytest.fail.Exception, match="hashed"):
        hub.space_of(folders["clip"])  # never seen
    hub.space_of(copy)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = load_file(copy / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, copy / "model.safetensors")
    assert hub.space_of(copy) != first
    (tmp_path / "cache" / "elastivid" / "hashes.json").write_text("{")
    assert hub.space_of(copy) != first  # a damaged cache is no obstacle


def test_sharded_weights_are_read(tmp_path, folders):
    folder = save_checkpoint(tmp_path / "sharded", "clip")
    weights = load_file(folder / "model.safetensors")
    halves = [dict(list(weights.items())[i::2]) for i in range(2)]
    placed = {}
    for number, half in enumerate(halves, start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(half, folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(half, name)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    ours, whole = load(f"hf:{folder}"), load(f"hf:{folders['clip']}")
    torch.testing.assert_close(ours.embed_texts(["dog"]), whole.embed_texts(["dog"]))
    torch.testing.assert_close(ours.embed_images(clip_of(ours)[:, 0]), whole.embed_images(clip_of(ours)[:, 0]))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks model-00002-of-00002.safetensors"):
        load(f"hf:{folder}")


def test_what_cannot_be_loaded_says_why(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="write hf:organisation/repository"):
        load("hf:siglip")
    with pytest.raises(WeightsError, match="no such folder"):
        load(f"hf:{tmp_path / 'none'}")
    folder = save_checkpoint(tmp_path / "clip", "clip")
    config = json.loads((folder / "config.json").read_text())
    processor_config = json.loads((folder / "preprocessor_config.json").read_text())

    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(
        WeightsError, match="of type 'bert'; dual encoders that can be loaded are clip, siglip, siglip2"
    ):
        load(f"hf:{folder}")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor_config, "do_rescale": False}))
    with pytest.raises(WeightsError, match=r"cannot do: .*do_rescale"):
        load(f"hf:{folder}")
    (folder / "preprocessor_config.json").write_text(json.dumps(processor_config))
    weights = load_file(folder / "model.safetensors")
    incomplete = {name: value for name, value in weights.items() if "visual_projection" not in name}
    save_file(incomplete, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"visual_projection.weight missing or misshapen"):
        load(f"hf:{folder}").vision_tower()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"it holds pytorch_model.bin, which are pickles and never loaded"):
        load(f"hf:{folder}")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'elastivid\[hf\]'"):
        load(f"hf:{folder}")


def test_nothing_is_downloaded_unasked(folders, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def no_network(*arguments, **settings):
        raise OSError("the network was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", no_network)
    monkeypatch.setattr(huggingface_hub.HfApi, "resolve_revision", no_network)
    monkeypatch.setattr("socket.socket.connect", no_network)
    with pytest.raises(WeightsError, match=r"add --allow-download .*hf download some/model --revision v1"):
        load("hf:some/model@v1")
    revision = "0123456789abcdef0123456789abcdef01234567"
    place = cache / "models--some--model"
    (place / "snapshots").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)
    (place / "snapshots" / revision).symlink_to(folders["siglip"])
    for address in ("hf:some/model", f"hf:some/model@{revision}"):
        model = load(address)
        assert model.name == address
        assert model.space_id == load(f"hf:{folders['siglip']}").space_id
    with pytest.raises(WeightsError, match=r"cannot get hf:other/model: "):
        load("hf:other/model", allow_download=True)


def test_licences_are_shown_and_enforced(tmp_path):
    for stated, shown, fine in (
        ("apache-2.0", "apache-2.0", True),
        ("[mit, cc-by-nc-4.0]", "mit AND cc-by-nc-4.0", False),
        ("other\nlicense_name: house-rules", "house-rules", False),
        (None, "unknown", False),
    ):
        folder = save_checkpoint(tmp_path / shown.replace(" ", ""), "clip", licence=stated)
        assert load(f"hf:{folder}").licence == shown
        listed = "permissive" if fine else "not on the permissive list"
        assert f"licence      {shown} ({listed})" in describe(f"hf:{folder}")
        if fine:
            load(f"hf:{folder}", licence="permissive")
        else:
            with pytest.raises(WeightsError, match=f"state the licence '{shown}', which is not on the permissive list"):
                load(f"hf:{folder}", licence="permissive")
    assert load("nano", licence="permissive").licence == "Apache-2.0"
    with pytest.raises(WeightsError, match="'any' or 'permissive', got 'free'"):
        load("nano", licence="free")


@pytest.mark.parametrize(
    ("licence", "fine"),
    [
        ("MIT", True),
        ("Apache-2.0 AND CC-BY-4.0", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR GPL-3.0-only) AND Apache-2.0", False),  # brackets: the careful reading
        ("", False),
        ("unknown", False),
    ],
)
def test_expressions_of_licences(licence, fine):
    assert is_permissive(licence) is fine


def test_an_index_of_the_hub(folders, kind, tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    render(tmp_path / "videos" / "a.mp4", ("red", 4), ("blue", 4), size=(96, 48))
    render(tmp_path / "videos" / "b.mp4", ("green", 5))
    monkeypatch.chdir(folders[kind].parent)
    index = Index.open(tmp_path / "library.ev", model=f"hf:./{kind}", licence="permissive")
    report = index.add(tmp_path / "videos")
    assert report.indexed == 2
    made = index.settings
    assert made.model == f"hf:{folders[kind]}"  # found again from everywhere
    assert made.licence == "apache-2.0"
    assert made.sampling == Sampling(frames=4, size=made.sampling.size)
    assert made.point == OperatingPoint()
    assert made.gmacs_per_window > 0
    again = Index.open(tmp_path / "library.ev", licence="permissive")
    moments = again.search("a dog runs", top=3)
    assert {Path(moment.path).name for moment in moments} <= {"a.mp4", "b.mp4"}
    best = again.search(like=f"{tmp_path / 'videos' / 'b.mp4'}@2s", top=1)[0]
    assert Path(best.path).name == "b.mp4"
    assert best.score == pytest.approx(1, abs=1e-3)
    with pytest.raises(LibraryError, match="their vectors do not compare"):
        Index.open(tmp_path / "library.ev", model=f"hf:{folders['clip' if kind != 'clip' else 'siglip']}").search("dog")
    (folders[kind] / "README.md").rename(folders[kind] / "hidden")
    try:
        with pytest.raises(WeightsError, match="state the licence 'unknown'"):
            Index.open(tmp_path / "library.ev", licence="permissive").search("dog")
    finally:
        (folders[kind] / "hidden").rename(folders[kind] / "README.md")


@pytest.mark.parametrize("size", [(192, 96), (96, 192), (128, 128)])
def test_indexing_decodes_what_the_model_sees(folders, kind, model, tmp_path, size):
    """Frames handed over by the decoder need no resizing, and differ from resizing full frames only by its filter."""
    path = str(tmp_path / "waves.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        grey = pictures(size[::-1], noise=0)[0][..., :1].repeat(3, -1)  # colours are stored at half the resolution
        frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    side = model.transform.size
    reading = Reading(Sampling(frames=1, size=side), transform=model.transform)
    with reading.open(path) as reader, VideoReader(path) as full:
        ours, whole = reading.crop(reader.frames_at([0]).frames), full.frames_at([0]).frames
    assert ours.shape == (1, side, side, 3)
    reference = model.transform.squared(side)
    levels = (replace(reference, shortest_edge=None)(ours) - reference(whole)).abs() * 255
    assert (levels * torch.tensor(model.transform.std)[:, None, None]).mean() < 3
    vector = embed_windows(model, ours[None], OperatingPoint())[0]
    assert float(model.embed_images(reference(whole))[0] @ torch.from_numpy(vector)) > 0.99


def test_describing_a_checkpoint_loads_neither_torch_nor_transformers(folders):
    code = (
        "import sys; from elastivid.app.info import describe\n"
        f"print('\\n'.join(describe('hf:{folders['siglip2']}')))\n"
        "print([m for m in ('torch', 'transformers', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "type         siglip2" in done.stdout
