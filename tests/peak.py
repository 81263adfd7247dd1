"""What a forward pass holds at most, measured."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run):
    """Most bytes of tensors alive at once while `run()` executes, above what was there."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = top = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        top = max(top, live)
    return top
