"""Plans are carried out as they say: precision, threads, batches, workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from elastivid.core.cost import Cost
from elastivid.core.errors import PlanError, PointError
from elastivid.core.plan import Plan
from elastivid.core.point import OperatingPoint, Runtime, Sampling
from elastivid.models.fluxvit import PRESETS
from elastivid.planning import load
from elastivid.planning.load import Watch
from elastivid.planning.run import Executor, Runner, threads_of
from elastivid.planning.subject import describe

SAMPLING = Sampling(frames=4, size=70)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PRESETS["tiny"].build().eval()


@pytest.fixture
def video():
    return torch.randn(5, 4, 3, 70, 70, generator=torch.Generator().manual_seed(0))


def made(**runtime) -> Plan:
    return Plan(SAMPLING, OperatingPoint(tokens=30), Runtime(**runtime), Cost(macs=7), model="fluxvit/tiny")


@pytest.mark.parametrize("runtime", [{}, {"batch": 2}, {"batch": 2, "workers": 2, "threads": 1}, {"threads": 1}])
def test_how_it_runs_does_not_change_what_comes_out(model, video, runtime):
    with torch.inference_mode():
        alone = model(video, point=OperatingPoint(tokens=30)).embedding
    with Runner(made(**runtime), model) as runner:
        result = runner.embed_clips(video)
    assert torch.allclose(result.embeddings, alone, atol=1e-5)
    assert result.predicted == Cost(macs=7)
    assert result.measured.macs == 7
    assert result.measured.milliseconds > 0
    assert f"batch {runtime.get('batch', 1)}" in result.measured.hardware


def test_weights_are_cast_once_and_the_model_is_left_alone(model, video):
    executor = Executor(model, Runtime(precision="bfloat16"))
    assert {p.dtype for p in executor.cast.parameters()} == {torch.bfloat16}
    assert executor.running(Runtime(precision="bfloat16", batch=8)).cast is executor.cast
    with pytest.raises(PlanError, match="make another Executor"):
        executor.running(Runtime())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    full, half = model(video).embedding, executor.embed_clips(video)
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full, half).min() > 0.99
    assert Executor(model, Runtime()).cast is model


def test_threads_are_set_and_put_back(model, video):
    before = torch.get_num_threads()
    with threads_of(Runtime(threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="inside"), threads_of(Runtime(threads=before + 1)):
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


def test_threads_born_meanwhile_get_the_number_they_always_got(model, video):
    def of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before = of_a_new_thread()
    with threads_of(Runtime(threads=before + 1)):
        assert of_a_new_thread() == before
        assert torch.get_num_threads() == before + 1
    assert of_a_new_thread() == before

    def holding(count: int) -> tuple[int, int]:
        torch.set_num_threads(1)  # as encoders do, whatever the others use
        with threads_of(Runtime(threads=count)):
            return torch.get_num_threads(), of_a_new_thread()

    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(holding, (2, 3, 4, 5)))
        assert [held for held, _ in found] == [2, 3, 4, 5]
    finally:
        torch.set_num_threads(before)


def test_frames_pass_the_transform_at_the_size_of_the_plan(model):
    frames = np.random.default_rng(0).integers(0, 255, (2, 4, 90, 120, 3), dtype=np.uint8)
    with Runner(made(batch=2), model) as runner:
        assert runner.transform.size == 70
        assert runner.embed_frames(frames).embeddings.shape == (2, 32)


def test_a_smaller_plan_sees_as_much_of_the_picture():
    model = describe("adavid/egovlp-tiny").build()
    assert (model.transform.size, model.transform.shortest_edge) == (70, 70)
    plan = replace(made(), sampling=Sampling(frames=4, size=42), point=OperatingPoint())
    with Runner(plan, model) as runner:
        assert (runner.transform.size, runner.transform.shortest_edge) == (42, 42)


def test_no_clips_are_refused(model, video):
    with Runner(made(), model) as runner, pytest.raises(PointError, match="nothing to embed"):
        runner.embed_clips(video[:0])


def test_a_plan_loads_its_own_model(video):
    with Runner(made()) as runner:
        assert runner.embed_clips(video).embeddings.shape == (5, 32)
    with pytest.raises(PlanError, match="names no model"):
        Runner(Plan(SAMPLING, OperatingPoint(), Runtime(), Cost()))


def test_the_watch_tells_a_share(monkeypatch, tmp_path):
    watch = Watch()
    sum(range(10**6))
    assert 0.0 <= watch.others <= 1.0
    monkeypatch.setattr(load, "STAT", tmp_path / "absent")
    assert Watch().others == 0.0
    (tmp_path / "stat").write_text("cpu  100 0 100 500 0 0 0 0 0 0\n")
    monkeypatch.setattr(load, "STAT", tmp_path / "stat")
    watch = Watch()
    (tmp_path / "stat").write_text("cpu  9999999 0 100 500 0 0 0 0 0 0\n")
    assert watch.others == 1.0
