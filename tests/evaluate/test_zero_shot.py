"""Evaluating lists of clips: against plain loops, with views, broken files, moved data, and again from the result."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from elastivid.app.cli import app
from elastivid.core.cost import Cost
from elastivid.core.errors import PointError
from elastivid.core.point import OperatingPoint
from elastivid.data.listing import read_entries
from elastivid.data.sampling import Segments
from elastivid.evaluate.classifiers import model_input
from elastivid.evaluate.labelled import How, embed, retrieval_rows
from elastivid.evaluate.protocol import EvaluationError
from elastivid.evaluate.result import Result, differences
from elastivid.evaluate.views import Setting, stream_views
from elastivid.models.classifier import ClassifierConfig
from elastivid.models.fluxvit import PRESETS
from elastivid.recipes.zero_shot import ZeroShotConfig, ZeroShotEvaluation
from elastivid.train.loop import train
from elastivid.train.stages import TrainingError
from elastivid.video.reader import VideoReader
from elastivid.video.transforms import Transform
from elastivid.weights.classifier import save_classifier

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
WHOLE = OperatingPoint()


def write(path: Path, colour: str, seconds: float = 2.0) -> Path:
    """A video of one colour whose left edge is dark, so that crops differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        picture = np.empty((48, 96, 3), np.uint8)
        picture[:] = COLOURS[colour]
        picture[:, :24] = 0
        for number in range(round(seconds * 10)):
            picture[:8, 40:56] = 10 * number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("actions")
    for colour in COLOURS:
        for number in range(2):
            write(made / colour / f"{number}.avi", colour, 1.5 + number)
    return made


class MeanColour:
    """Embeds a clip as its mean colour. `batches` are the sizes it was called with."""

    dim, logit_scale = 3, 10.0
    transform = Transform(size=32, mean=(0, 0, 0), std=(1, 1, 1), shortest_edge=36)

    def __init__(self):
        self.batches = []

    def embed_clips(self, video, *, point=None):
        self.batches.append(len(video))
        return F.normalize(video.mean(dim=(1, 3, 4)), dim=-1)

    def embed_texts(self, texts):
        return F.normalize(torch.tensor([COLOURS[text.split()[0]] for text in texts], dtype=torch.float32), dim=-1)

    def cost(self, *, frames, size, point=None):
        return Cost(macs=frames * size**2)


def test_other_sizes_keep_the_rule_of_the_transform():
    """The shorter edge and the crop scale with the size; at its own size nothing changes."""
    clips = np.random.default_rng(0).integers(0, 255, (2, 3, 36, 72, 3), dtype=np.uint8)
    transform = MeanColour.transform
    assert torch.equal(model_input(transform, clips, 32)[1], transform(clips[1]))
    assert torch.equal(model_input(transform, clips, 64)[0], replace(transform, size=64, shortest_edge=72)(clips[0]))


def test_views_are_those_of_plain_decoding(folder):
    entries = read_entries(folder)
    settings = (Setting(4, 32, WHOLE, clips=3), Setting(2, 24, WHOLE, clips=2, crops=3))
    (viewed, *others) = stream_views(entries, settings)
    assert [view.index for view in others] == [1, 2, 3, 4, 5]
    assert [part.shape[:2] for part in viewed.views] == [(3, 4), (6, 2)]
    with VideoReader(entries[0].path, size=lambda height, width: (32, 64)) as reader:
        frames = np.concatenate([clip.frames for clip in reader.iterate()])
    for view, indices in zip(viewed.views[0], Segments().views(len(frames), 4, 3), strict=True):
        assert np.abs(view.astype(int) - frames[indices].astype(int)).max() <= 2
    left, middle, right = viewed.views[1][:3]
    assert left.shape == (2, 24, 24, 3)
    assert left[:, :, :10].mean() < 15 < right.mean()  # only the left crop shows the dark edge
    assert middle.mean() > left.mean()


def test_batches_run_across_clips_and_equal_one_clip_at_a_time(folder):
    entries, setting = read_entries(folder), Setting(3, 32, WHOLE, clips=3)
    many, one = MeanColour(), MeanColour()
    found = embed(many, entries, How((setting,), batch=4))
    alone = embed(one, entries, How((setting,), batch=1))
    assert many.batches == [4] * 4 + [2]
    assert found.used == list(range(6))
    for index in range(6):
        assert found.of[0][index].shape == (3, 3)
        assert torch.allclose(found.of[0][index], alone.of[0][index])


def test_retrieval_with_several_captions_per_clip(folder):
    entries = read_entries(folder)[::2]
    captions = [(f"{entry.label} {word}", i) for i, entry in enumerate(entries) for word in ("thing", "edge")]
    rows, predictions, _ = retrieval_rows(MeanColour(), entries, captions, How((Setting(2, 32, WHOLE),)))
    assert (rows[0]["accuracy"], rows[0]["video_r1"], rows[0]["text_median"]) == (1.0, 1.0, 1.0)
    assert rows[0]["gmacs"] == 2 * 32**2 / 1e9
    assert predictions[0]["text_ranks"].tolist() == [1] * 6
    swapped = [(text, (i + 1) % 3) for text, i in captions]
    wrong, _, _ = retrieval_rows(MeanColour(), entries, swapped, How((Setting(2, 32, WHOLE),)), dual=True)
    assert wrong[0]["accuracy"] == 0.0


def test_rendered_scenes_and_their_result_again(tmp_path):
    config = replace(ZeroShotEvaluation.smoke(ZeroShotConfig()), scenes=4, points=((4, 112, 64, 128),))
    result = ZeroShotEvaluation(config).run()
    (row,) = result.rows
    assert row["accuracy"] >= 0.75
    assert 0 < row["gmacs"] < 0.2
    assert (row["tokens"], row["frames"], row["clips"]) == (64, 4, 4)
    assert result.predictions[0]["classes"].shape[0] == 4
    result.write(tmp_path / "result.json")
    done = CliRunner().invoke(app, ["replay", str(tmp_path / "result.json"), "--device", "cpu"])
    assert (done.exit_code, done.stdout.split(":")[0]) == (0, "same to 1e-06")
    other = json.loads((tmp_path / "result.json").read_text())
    other["rows"][0]["accuracy"] = 0.123
    (tmp_path / "result.json").write_text(json.dumps(other))
    done = CliRunner().invoke(app, ["replay", str(tmp_path / "result.json"), "--device", "cpu"])
    assert done.exit_code == 1
    assert "accuracy 0.123 -> " in done.stdout


def test_a_fine_tuned_file_is_tested_on_its_own_classes_and_on_moved_data(folder, tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    classes = ("blue", "red", "green")
    model = ClassifierConfig(PRESETS["tiny"], classes, transform=Transform(size=56), frames=4).build()
    torch.nn.init.normal_(model.head.weight, std=0.2)
    save_classifier(model.eval(), weights, address="tiny@0")
    config = ZeroShotConfig(data=folder, model=str(weights), views=2, crops=3)
    result = ZeroShotEvaluation(config).run()
    assert result.data.classes == classes
    assert (result.rows[0]["views"], result.rows[0]["point"]) == (6, "4 x 56 px, 2 x 3 views")
    chosen = result.predictions[0]["classes"][:, 0]
    assert result.rows[0]["accuracy"] == np.mean(chosen == result.predictions[0]["labels"])
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    result.write(tmp_path / "r.json")
    again = ZeroShotEvaluation(replace(config, data=moved)).run()
    assert differences(Result.read(tmp_path / "r.json"), again) == []
    write(moved / "red" / "0.avi", "blue")
    changed = differences(result, ZeroShotEvaluation(replace(config, data=moved)).run())
    assert changed[0].startswith("data: ")
    assert any("probabilities of" in line for line in changed)
    write(moved / "purple" / "0.avi", "blue")
    with pytest.raises(EvaluationError, match="1 labels of the data are no class"):
        ZeroShotEvaluation(replace(config, data=moved)).run()


def test_broken_clips_are_left_out_and_too_many_are_an_error(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "red" / "1.avi").write_bytes(b"broken")
    config = ZeroShotConfig(data=data, points=((2, 56, 16, 64),), allowed_failures=0.2)
    result = ZeroShotEvaluation(config).run()
    assert result.rows[0]["clips"] == 5
    assert [Path(row["path"]).name for row in result.left_out] == ["1.avi"]
    with pytest.raises(EvaluationError, match="1 of 6 clips cannot be read, more than the allowed 5 %"):
        ZeroShotEvaluation(replace(config, allowed_failures=0.05)).run()


def test_captions_in_a_list_are_retrieved(folder, tmp_path):
    lines = ["path,text", *(f"{folder}/{c}/0.avi,a {c} {w}" for c in COLOURS for w in ("circle", "square"))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    result = ZeroShotEvaluation(ZeroShotConfig(data=tmp_path / "list.csv", points=((2, 56, 16, 64),))).run()
    assert result.rows[0]["clips"] == 3
    assert result.predictions[0]["text_ranks"].shape == (6,)
    (tmp_path / "mixed.csv").write_text(f"path,label,text\n{folder}/red/0.avi,,a\n{folder}/blue/0.avi,b,\n")
    with pytest.raises(EvaluationError, match="a label for every clip, or a text for every clip"):
        ZeroShotEvaluation(ZeroShotConfig(data=tmp_path / "mixed.csv")).run()


def test_it_trains_nothing_and_settings_are_checked(tmp_path):
    with pytest.raises(TrainingError, match="zero_shot trains nothing"):
        train(ZeroShotEvaluation(), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="crops 1 or 3"):
        ZeroShotConfig(crops=2)
    with pytest.raises(PointError, match="crops 1 or 3"):
        Setting(4, 56, WHOLE, crops=2)
    done = CliRunner().invoke(app, ["eval", "nano"])
    assert done.exit_code == 2
