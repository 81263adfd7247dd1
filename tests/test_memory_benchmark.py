"""The page on memory: rules that look at no scores are run over numbers of tokens, which must give the same tokens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from elastivid.memory.cache import CacheMemory
from elastivid.memory.window import FirstInFirstOut, KeepAll, RandomKeeping, UniformThinning
from elastivid.models.qformer import QFormerConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from memory import kept_places


@pytest.mark.parametrize("rule", [FirstInFirstOut(12), UniformThinning(12), RandomKeeping(12), KeepAll()])
@torch.inference_mode()
def test_places_are_those_that_streaming_leaves(rule):
    torch.manual_seed(0)
    model = QFormerConfig(
        vocab_size=5, context_length=4, embed_dim=16, depth=4, num_heads=2, hidden_dim=16, visual_dim=8, num_queries=2
    ).build()
    visual = torch.randn(2, 30, 5, 8)
    seconds = torch.arange(150.0).reshape(30, 5).expand(2, -1, -1)
    streamed = model.stream(visual, seconds, CacheMemory(rule)).memory
    kept = kept_places(rule, 30, 5)
    for layer in streamed.layers:
        assert layer.seconds.long().eq(kept).all()
    assert torch.allclose(streamed.layers[1].keys, model.blocks[2].cross.project(visual.flatten(1, 2)[:, kept])[0])
