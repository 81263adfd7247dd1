"""Watching a video for questions: pieces, resuming, extending, memory, bad input. Weights are random but for nano's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from elastivid.app.ask import questions_of
from elastivid.core.errors import BudgetError, QuestionError, WeightsError
from elastivid.data.questions import answer_words
from elastivid.data.synthetic import Phrase, VideoFormat, compose_scene, write_video
from elastivid.models.tiny_vlm import TinyVLMConfig
from elastivid.search.watch import Watch, WatchPlan, in_words, memory_bytes_of
from elastivid.video.errors import VideoError
from elastivid.weights.load import load, load_asker

QUESTIONS = ["when does the red star spin?", "is there a blue ring?"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """An untrained model of the shipped sizes that looks about sharply."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = TinyVLMConfig(encoder_space=load("nano").space_id, answers=answer_words())
    model = config.build()
    for layer in model.qformer.blocks:
        if layer.cross is not None:
            torch.nn.init.normal_(layer.cross.query.weight, std=0.3)
            torch.nn.init.normal_(layer.cross.key.weight, std=0.3)
    path = tmp_path_factory.mktemp("weights") / "asker.safetensors"
    metadata = {"family": "tiny_vlm", "address": "asker", "config": vars(config) | {"qformer": vars(config.qformer)}}
    save_file(model.state_dict(), path, metadata={k: json.dumps(v) for k, v in metadata.items()})
    return str(path)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """21 seconds: five whole chunks and two frames."""
    path = tmp_path_factory.mktemp("video") / "scene.mp4"
    scene = compose_scene((Phrase("red", "star", "spin"),), np.random.default_rng(0), duration_seconds=21.0)
    write_video(scene, path, VideoFormat(height=64, width=80, fps=4))
    return str(path)


def plan(model_file, **values):
    return WatchPlan(model=model_file, **values)


def watched(model_file, video, **values):
    watch = Watch(video, QUESTIONS, plan(model_file, **values))
    watch.run()
    return watch


def same_answers(a, b):
    left, right = a.answers(), b.answers()
    assert [replace(x, certainty=0) for x in left] == [replace(x, certainty=0) for x in right]
    assert [x.certainty for x in left] == pytest.approx([x.certainty for x in right], abs=1e-3)


def test_a_video_is_watched_to_its_end(model_file, video):
    seen = []
    with Watch(video, QUESTIONS, plan(model_file)) as watch:
        watch.run(progress=lambda seconds, length: seen.append((seconds, length)))
        answers = watch.answers()
    assert watch.watched_seconds == pytest.approx(21.0, abs=0.5)
    assert [s for s, _ in seen] == [4.0, 8.0, 12.0, 16.0, 20.0]
    assert seen[0][1] == pytest.approx(21.0, abs=0.3)
    assert [a.question for a in answers] == QUESTIONS
    assert all(a.watched_seconds == watch.watched_seconds for a in answers)
    assert all(0 <= e.start_seconds < e.end_seconds <= watch.watched_seconds for a in answers for e in a.evidence)
    assert watch.memory.frames == (5, 5)  # the last two frames wait for more
    assert watch.answers() == answers


@pytest.mark.parametrize("spent", [{}, {"memory_bytes": 100_000}, {"precision": "bfloat16", "memory_bytes": 60_000}])
def test_stopped_saved_and_resumed_is_the_same(model_file, video, tmp_path, spent):
    whole = watched(model_file, video, **spent)
    with Watch(video, QUESTIONS, plan(model_file, **spent)) as first:
        first.run(until_seconds=8.0)
        assert first.watched_seconds == 8.0
        first.save(tmp_path / "watch.safetensors")
    with Watch.resume(tmp_path / "watch.safetensors") as second:
        assert second.watched_seconds == 8.0
        same_answers(first, second)
        second.run()
        same_answers(second, whole)
        second.save(tmp_path / "end.safetensors")
    with Watch.resume(tmp_path / "end.safetensors") as third:
        third.run()  # nothing is left
        same_answers(third, whole)
        assert third.ask("is there a star?") == whole.ask("is there a star?")
    for name, tensor in whole.memory.state_dict().items():
        assert torch.allclose(tensor.float(), third.memory.state_dict()[name].float(), atol=1e-5)


@pytest.mark.slow
def test_killed_while_watching_and_resumed_is_the_same(model_file, video, tmp_path):
    """A process that saves after every chunk is killed without warning; what it left goes on to the same answers."""
    saved = tmp_path / "watch.safetensors"
    code = (
        "from elastivid.search.watch import Watch, WatchPlan\n"
        f"watch = Watch({video!r}, {QUESTIONS!r}, WatchPlan(model={model_file!r}))\n"
        "for second in range(4, 400, 4):\n"
        "    watch.run(until_seconds=second)\n"
        f"    watch.save({str(saved)!r})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not saved.exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert saved.exists()
    with Watch.resume(saved) as watch:
        watch.run()
        same_answers(watch, watched(model_file, video))


def test_memory_stays_within_its_cap(model_file, video):
    small = watched(model_file, video, memory_bytes=100_000)
    assert small.memory.tokens(0) == (small.tokens - 5,) * 2
    assert small.nbytes <= 100_000
    assert watched(model_file, video).nbytes > small.nbytes


def test_a_second_file_goes_on_where_the_first_ended(model_file, video):
    watch = watched(model_file, video)
    first = watch.watched_seconds
    watch.extend(video)
    watch.run()
    assert watch.watched_seconds == pytest.approx(2 * first, abs=0.5)
    assert watch.memory.frames == (11, 11)
    later = watch.memory.layers[0].seconds[0]
    assert float(later.max()) > first + 16
    assert len(later.unique()) == len(later.unique(sorted=True))


def test_questions_share_one_pass_and_do_not_see_each_other(model_file, video):
    both = watched(model_file, video).answers()
    for number, question in enumerate(QUESTIONS):
        with Watch(video, [question], plan(model_file)) as watch:
            watch.run()
            (alone,) = watch.answers()
        assert (alone.text, alone.evidence) == (both[number].text, both[number].evidence)


def test_bad_input_is_named(model_file, video, tmp_path):
    with pytest.raises(QuestionError, match="a question must hold at least one word, got '  '"):
        Watch(video, ["  "], plan(model_file))
    with pytest.raises(QuestionError, match="at most 31 fit"):
        Watch(video, ["why " * 40], plan(model_file))
    with pytest.raises(QuestionError, match="at least one question"):
        Watch(video, [], plan(model_file))
    with pytest.raises(BudgetError, match=r"1,000 bytes is below the minimum of 92,640 bytes"):
        Watch(video, QUESTIONS, plan(model_file, memory_bytes=1000))
    with pytest.raises(BudgetError, match="memory_bytes must be >= 1"):
        plan(model_file, memory_bytes=0)
    with pytest.raises(VideoError, match="no such file"):
        Watch(tmp_path / "none.mp4", QUESTIONS, plan(model_file))
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    with pytest.raises(VideoError, match="the file is empty"):
        Watch(empty, QUESTIONS, plan(model_file))
    with Watch(video, QUESTIONS, plan(model_file)) as watch, pytest.raises(QuestionError, match="nothing has been wat"):
        watch.answers()
    with pytest.raises(WeightsError, match="is no saved watch"):
        Watch.resume(video)


def test_a_source_without_frames_is_named(model_file, tmp_path):
    import av

    path = tmp_path / "sound.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        Watch(path, QUESTIONS, plan(model_file))


def test_a_saved_watch_of_other_weights_is_refused(model_file, video, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with Watch(video, QUESTIONS[:1], plan(model_file)) as watch:
        watch.run(until_seconds=4.0)
        watch.save(tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        held = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        told = json.loads(file.metadata()["watch"]) | {"model_id": "other"}
    save_file(held, tmp_path / "x.safetensors", metadata={"watch": json.dumps(told)})
    with pytest.raises(WeightsError, match="made with other weights"):
        Watch.resume(tmp_path / "x.safetensors")


def test_weights_of_another_kind_are_told_apart(model_file):
    with pytest.raises(WeightsError, match="answers no questions"):
        load_asker("nano")
    with pytest.raises(WeightsError, match="answers questions and embeds nothing"):
        load(model_file)
    model = load_asker(model_file)
    assert model.encoder.space_id == model.config.encoder_space
    with pytest.raises(WeightsError, match="was trained on the space other"):
        replace(model.config, encoder_space="other").build().attach(model.encoder)
    with pytest.raises(WeightsError, match="has no encoder yet"):
        model.config.build().encoder  # noqa: B018


def test_questions_of_the_command_line(tmp_path):
    listed = tmp_path / "questions.txt"
    listed.write_text("one?\n\n  two?  \n")
    assert questions_of("zero?", listed) == ["zero?", "one?", "two?"]
    with pytest.raises(QuestionError, match="ask something"):
        questions_of(None, None)
    with pytest.raises(QuestionError, match="cannot read questions"):
        questions_of(None, tmp_path / "none.txt")
    assert memory_bytes_of("64MB") == 64_000_000
    with pytest.raises(BudgetError, match="memory takes megabytes, such as 64MB, got '20x'"):
        memory_bytes_of("20x")


def test_times_and_counts_are_filled_in():
    from elastivid.core.answer import Evidence

    found = [Evidence(8, 12, 0.5), Evidence(100, 108, 0.3)]
    assert in_words(["<count>"], found) == "twice"
    assert in_words(["<when>"], found) == "from 0:08.0 to 0:12.0"
    assert in_words(["<count>"], found[:1]) == "once"
    assert in_words(["<count>"], found * 2) == "4 times"
    assert in_words(["<when>"], []) == "at a time that is not known"
    assert in_words(["it", "spins"], found) == "it spins"
