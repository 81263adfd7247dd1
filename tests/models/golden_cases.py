"""What tests of converted models share: golden files as parameters, configs and cases."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch


@dataclass
class Case:
    """One case of a golden file: what it does, and its tensors."""

    about: dict
    tensors: dict

    def __getitem__(self, name):
        return self.tensors[name]

    @property
    def video(self):
        """(B, T, 3, H, W) in float32."""
        return self.tensors["video"].float().transpose(1, 2)


@dataclass
class Golden:
    """A golden file taken apart."""

    parameters: dict
    config: dict
    cases: list

    def part(self, prefix):
        """Parameters under a prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.parameters.items() if k.startswith(prefix)}


def parsed(loaded):
    """`Golden` of what the fixture `golden` returns."""
    tensors, metadata = loaded
    cases = []
    for i, about in enumerate(json.loads(metadata["cases"])):
        start = f"case{i}."
        cases.append(Case(about, {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}))
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    return Golden(parameters, json.loads(metadata["config"]), cases)


def places(hidden):
    """Masks (B, N), 1 = hidden, as the visible places (B, V), ascending."""
    return (hidden == 0).nonzero()[:, 1].reshape(len(hidden), -1)


WORST = {}


def close(ours, theirs, name, limit=1e-5):
    """Assert that both agree to `limit` on outputs of order 1; the largest difference per file is kept in `WORST`.

    Where outputs are larger than that (root mean square above 1) the difference counts in units of it.
    """
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} and {tuple(theirs.shape)}"
    worst = float((ours - theirs).abs().max() / theirs.square().mean().sqrt().clamp(min=1))
    key = name.split(":")[0]
    WORST[key] = max(WORST.get(key, 0.0), worst)
    assert worst < limit, f"{name}: {worst:.2g}"
    assert torch.isfinite(ours).all()
