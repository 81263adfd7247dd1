"""Losses over several processes equal one process with the whole batch: values and gradients, over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from elastivid.losses.contrastive import contrastive
from elastivid.losses.gather import contrastive_rows, gathered
from elastivid.losses.sigmoid import sigmoid, sigmoid_over_processes

WORKER = """
import sys, torch, torch.distributed as dist
import torch.nn.functional as F
from elastivid.losses.contrastive import contrastive
from elastivid.losses.gather import contrastive_over_processes, gathered
from elastivid.losses.sigmoid import sigmoid_over_processes
rank, world, rendezvous, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + rendezvous, rank=rank, world_size=world)
clips, texts, weight = torch.load(folder + "/inputs.pt")
b = len(clips) // world
own = slice(rank * b, (rank + 1) * b)
results = {}
def keep(name, run):
    # a shared projection stands for the parameters that data parallelism averages
    leaf, scale, bias = (torch.tensor(v, requires_grad=True) for v in (weight.tolist(), 6.0, -2.0))
    vectors = [F.normalize(x[own] @ leaf, dim=-1) for x in (clips, texts)]
    loss = (rank + 1 if name == "weighted" else 1) * run(*vectors, scale, bias)
    loss.backward()
    gradients = [leaf.grad, scale.grad, torch.zeros(()) if bias.grad is None else bias.grad]
    for value in (loss.detach(), *gradients):
        dist.all_reduce(value)
    results[name] = [(loss / world).detach(), *(g / world for g in gradients)]
keep("full", lambda c, t, s, b: contrastive(gathered(c), gathered(t), s))
keep("rows", lambda c, t, s, b: contrastive_over_processes(c, t, s))
keep("ring", sigmoid_over_processes)
keep("tiles", lambda c, t, s, b: sigmoid_over_processes(c, t, s, b, chunk=2))
keep("weighted", sigmoid_over_processes)
try:
    gathered(torch.zeros(1 + rank, 2))
except ValueError as error:
    results["refused"] = str(error)
if rank == 0:
    torch.save(results, folder + "/results.pt")
dist.destroy_process_group()
"""


def over_processes(folder: Path, world: int, inputs: tuple) -> dict:
    torch.save(inputs, folder / "inputs.pt")
    arguments = [str(world), str(folder / "rendezvous"), str(folder)]
    running = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), *arguments], stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_equal_one_with_the_whole_batch(tmp_path, world):
    generator = torch.Generator().manual_seed(5)
    clips, texts = (torch.randn(4 * world, 6, generator=generator) for _ in range(2))
    weight = torch.randn(6, 5, generator=generator)
    found = over_processes(tmp_path, world, (clips, texts, weight))

    def alone(loss):
        leaf, scale, bias = (torch.tensor(v, requires_grad=True) for v in (weight.tolist(), 6.0, -2.0))
        value = loss(*(F.normalize(x @ leaf, dim=-1) for x in (clips, texts)), scale, bias)
        value.backward()
        return [value.detach(), leaf.grad, scale.grad, torch.zeros(()) if bias.grad is None else bias.grad]

    softmax, pairs = alone(lambda c, t, s, b: contrastive(c, t, s)), alone(sigmoid)
    for name, wanted in [("full", softmax), ("rows", softmax), ("ring", pairs), ("tiles", pairs)]:
        for got, value in zip(found[name], wanted, strict=True):
            assert (got - value).abs().max() < 1e-5, name
    assert f"got {list(range(1, world + 1))}" in found["refused"]
    assert weighted_alone(clips, texts, weight, world) == pytest.approx(
        found["weighted"][1].flatten().tolist(), abs=1e-5
    )


def weighted_alone(clips, texts, weight, world):
    """Gradient where process r counts its loss r + 1 times: gradients of texts must come home with these factors."""
    leaf = weight.clone().requires_grad_()
    c, t = (F.normalize(x @ leaf, dim=-1) for x in (clips, texts))
    logits = 6.0 * c @ t.T - 2.0
    pairs = F.binary_cross_entropy_with_logits(logits, torch.eye(len(c)), reduction="none").sum(1)
    factors = torch.arange(1, world + 1).repeat_interleave(len(c) // world)
    ((factors * pairs).sum() / len(c)).backward()
    return leaf.grad.flatten().tolist()


def test_alone_nothing_is_exchanged():
    x = torch.randn(3, 4, requires_grad=True)
    assert gathered(x) is x
    assert sigmoid_over_processes(x, x, 1.0, 0.0).item() == sigmoid(x, x, 1.0, 0.0).item()


def test_rows_of_a_batch_equal_the_public_local_form(golden):
    """Sum over simulated ranks of the loss of own rows against all columns, gradients through the gather."""
    tensors, metadata = golden("contrastive_losses")
    compared = 0
    for i, case in enumerate(json.loads(metadata["cases"])):
        settings = case["settings"]
        if not settings.get("gather_with_grad"):
            continue
        clips, texts = (tensors[f"case{i}.{name}"].clone().requires_grad_() for name in ("image", "text"))
        scales = [tensors[f"case{i}.scale"].clone().requires_grad_() for _ in range(settings["world_size"])]
        b = len(clips) // len(scales)
        losses = [
            contrastive_rows(clips[r * b : r * b + b], texts[r * b : r * b + b], clips, texts, scale, r * b)
            if settings["local_loss"]
            else contrastive(clips, texts, scale)
            for r, scale in enumerate(scales)
        ]
        torch.stack(losses).sum().backward()
        assert (torch.stack(losses) - tensors[f"case{i}.loss"]).abs().max() < 1e-5, case["name"]
        assert (clips.grad - tensors[f"case{i}.grad_image"]).abs().max() < 1e-5, case["name"]
        assert (texts.grad - tensors[f"case{i}.grad_text"]).abs().max() < 1e-5, case["name"]
        assert (torch.stack([s.grad for s in scales]) - tensors[f"case{i}.grad_scale"]).abs().max() < 1e-5
        compared += 1
    assert compared == 4
