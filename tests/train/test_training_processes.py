"""What needs processes of its own: kills at random moments, two processes for one batch, signals, the commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elastivid.train.checkpoint import load_checkpoint
from elastivid.train.log import read_lines

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}


def python(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run Python on one thread."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=280, check=check)


def same(one, other) -> bool:
    """Whether two checkpoints are bit for bit the same."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_like_one_that_was_not(tmp_path):
    out = python(HERE / "kill_and_resume.py", tmp_path, "12", "3").stdout
    lines = [line for line in out.splitlines() if line.startswith("killed")]
    assert len(lines) >= 6, out
    assert len({line.split()[-1] for line in lines}) >= 4, out  # at several steps of the run
    assert sum("while writing" in line for line in lines) >= 1, out
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        assert (whole / name).read_text() == (killed / name).read_text()
    one, other = (load_checkpoint(folder / "last.pt") for folder in (whole, killed))
    one.pop("seconds"), other.pop("seconds")
    assert same(one, other)
    assert same(*(load_file(folder / "model.safetensors") for folder in (whole, killed)))
    assert not list(killed.glob("*.partial"))


@pytest.mark.slow
def test_a_signal_stops_all_processes_after_a_step(tmp_path):
    command = [sys.executable, "-m", "elastivid", "train", str(HERE / "tiny_recipe.py"), "--out", str(tmp_path)]
    settings = ["--set", "steps=5,100000", "--processes", "2"]
    running = subprocess.Popen([*command, *settings], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    end = time.monotonic() + 200
    while not read_lines(tmp_path / "metrics.jsonl") and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    out, errors = running.communicate(timeout=200)
    assert running.returncode == 128 + signal.SIGTERM, errors
    assert "checkpoint written; go on with the same command and --resume" in out
    assert "finishing the step" in errors
    assert load_checkpoint(tmp_path / "last.pt")["step"] >= 3


def test_commands_train_resume_and_evaluate(tmp_path, monkeypatch, capsys):
    from elastivid.app import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["elastivid", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, errors = capsys.readouterr()
        return stopped.value.code, out, errors

    recipe, out = HERE / "tiny_recipe.py", tmp_path / "run"
    code, text, errors = run("train", recipe, "--out", out, "--set", "steps=3,4", "--device", "cpu")
    assert code == 0
    assert f"run in {out}" in errors
    assert "7 steps in" in text
    assert "accelerate" in json.loads((out / "run.json").read_text())["versions"]
    assert "accuracy" in text
    code, _, errors = run("train", recipe, "--out", out, "--device", "cpu")
    assert (code, "already holds a run; go on with it (--resume)" in errors) == (1, True)
    assert "run in" not in errors  # nothing is announced that is refused
    code, _, errors = run("train", recipe, "--out", out, "--resume", "--set", "hidden=9", "--device", "cpu")
    assert (code, "before -> now: hidden: 8 -> 9. " in errors) == (1, True)  # the other settings come from the run
    assert "run in" not in errors
    code, _, errors = run("train", "linear_probe", "--out", out, "--resume", "--device", "cpu")
    assert (code, "holds a run of the recipe 'tiny_recipe', not of 'linear_probe'; name that" in errors) == (1, True)
    code, text, _ = run("train", recipe, "--out", out, "--resume", "--device", "cpu")
    assert code == 0
    code, text, _ = run("eval", recipe, "--from", out, "--json", "--device", "cpu")
    values = json.loads(text)
    assert values["rows"] == json.loads((out / "evaluated.json").read_text())["rows"]
    assert values["rows"] == read_lines(out / "evaluation.jsonl")[-1]["rows"]
    assert values["config"]["steps"] == [3, 4]
    code, text, _ = run("eval", recipe, "--from", out, "--best", "--device", "cpu")
    assert code == 0
    assert "accuracy" in text.splitlines()[0]
    code, text, _ = run("train", "--list")
    assert "Train `nano`" in text
    code, _, errors = run("train", "nanno", "--out", tmp_path / "x")
    assert code == 1
    assert "unknown recipe" in errors
    assert "Did you mean 'nano'" in errors
    code, _, errors = run("train", recipe, "--out", tmp_path / "x", "--set", "hiden=3")
    assert (code, "unknown setting of TinyConfig 'hiden'" in errors, "'hidden'" in errors) == (1, True, True)
    code, _, errors = run("train", recipe, "--out", tmp_path / "x", "--set", "batch_size=many")
    assert (code, "batch_size takes a whole number, got 'many'" in errors) == (1, True)
    code, _, errors = run("eval", recipe, "--from", tmp_path / "x")
    assert (code, "no checkpoint at" in errors) == (1, True)
