"""`Cost`: the closed forms against torch's counter, and arithmetic that does not invent numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from elastivid.core.budget import Budget
from elastivid.core.cost import (
    Cost,
    attention_macs,
    block_macs,
    conv_macs,
    format_macs,
    hardware_key,
    linear_macs,
    measured_macs,
)
from elastivid.core.point import Runtime


def attend(heads=2, queries=5, keys=7, channels=4):
    shape = (1, heads, queries, channels), (1, heads, keys, channels), (1, heads, keys, channels)
    return F.scaled_dot_product_attention(*(torch.randn(s) for s in shape))


def test_closed_forms_equal_the_counter():
    assert measured_macs(lambda: nn.Linear(6, 8)(torch.randn(5, 6))) == linear_macs(5, 6, 8)
    assert measured_macs(attend) == attention_macs(5, 7, 8)
    conv = nn.Conv3d(4, 6, (3, 1, 2), stride=2, groups=2)
    out = conv(torch.randn(1, 4, 9, 8, 7))
    predicted = conv_macs(out.shape[2:], (3, 1, 2), 4, 6, groups=2)
    assert measured_macs(lambda: conv(torch.randn(1, 4, 9, 8, 7))) == predicted


def test_block_formula():
    assert block_macs(100, 32) == 12 * 100 * 32**2 + 2 * 100**2 * 32
    assert block_macs(100, 32, 2.0) == 8 * 100 * 32**2 + 2 * 100**2 * 32


def test_counter_sees_attention():
    """Fails where the counter runs on the fused backend, which it sees as zero."""
    assert measured_macs(attend) > 0


def test_counting_needs_no_gradients():
    """A view of a parameter passed through a module, which torch's own bookkeeping of modules cannot take."""
    table, layer, results = nn.Parameter(torch.randn(5, 3)), nn.Linear(3, 3), []
    assert measured_macs(lambda: results.append(layer(table[1:]))) == linear_macs(4, 3, 3)
    assert not results[0].requires_grad


def test_conv_macs_refuses_what_torch_would():
    with pytest.raises(ValueError, match="same length"):
        conv_macs((4, 4), (3,), 2, 2)
    with pytest.raises(ValueError, match="divisible by groups 3"):
        conv_macs((4,), (3,), 2, 3, groups=3)


def test_addition_and_scaling():
    first = Cost(100, 10, 50, 1, 2.0, "here")
    second = Cost(200, 20, 30, 2, 3.0, "here")
    assert first + second == Cost(300, 30, 50, 3, 5.0, "here")
    assert first.times(3) == Cost(300, 10, 50, 1, 6.0, "here")
    assert first + Cost(macs=1) == Cost(101, 10, 50, 1)
    with pytest.raises(ValueError, match="different hardware: 'here' and 'there'"):
        first + Cost(milliseconds=1, hardware="there")
    with pytest.raises(ValueError, match="clips must be >= 0"):
        first.times(-1)


def test_refuses_impossible_costs():
    with pytest.raises(ValueError, match=r"Cost\.macs must be finite and >= 0, got -1"):
        Cost(macs=-1)
    with pytest.raises(ValueError, match=r"Cost\.milliseconds must be finite"):
        Cost(milliseconds=float("nan"), hardware="here")
    with pytest.raises(ValueError, match=r"needs Cost\.hardware"):
        Cost(milliseconds=1.0)


def test_violations_name_the_limit_and_both_numbers():
    cost = Cost(int(6e9), int(100e6), int(50e6), int(20e6), 80.0, "here")
    assert cost.fits(Budget.parse("6gmacs, 80ms, 25x, 70MB, total 170MB, 10tokens"), video_seconds=2, tokens=10)
    tight = Budget.parse("5gmacs, 40ms, 26x, 60MB, total 160MB, 9tokens")
    assert cost.violations(tight, video_seconds=2, tokens=10) == [
        "gmacs_per_clip: 6 GMACs, limit 5 GMACs",
        "milliseconds_per_clip: 80 ms, limit 40 ms",
        "realtime_factor: 25 x, at least 26 x wanted",
        "state_megabytes: 70 MB above the weights, limit 60 MB above the weights",
        "total_megabytes: 170 MB in total, limit 160 MB in total",
        "tokens_per_clip: 10 tokens, limit 9 tokens",
    ]


def test_unknown_quantities_do_not_fit():
    broken = Cost(macs=1).violations(Budget.parse("40ms, 20x, 5tokens, 1gmacs"))
    assert [line.split(":")[0] for line in broken] == ["milliseconds_per_clip", "realtime_factor", "tokens_per_clip"]
    assert all("unknown" in line for line in broken)


def test_formatting():
    assert [format_macs(n) for n in (12, 8.5e8, 13.34e9, 1.25e12)] == [
        "12 MACs",
        "850 MMACs",
        "13.3 GMACs",
        "1.25 TMACs",
    ]
    assert str(Cost(int(2e9), int(3e6), int(4e6), int(5e6), 6.0, "here")) == (
        "2 GMACs, 3.0 MB weights, 4.0 MB activations, 5.0 MB state, 6 ms on here"
    )


def test_hardware_key_tells_settings_apart():
    one = hardware_key(Runtime(threads=1))
    assert "| 1 thread |" in one
    assert f"torch {torch.__version__}" in one
    others = [Runtime(threads=2), Runtime(threads=1, batch=4), Runtime(threads=1, precision="bfloat16")]
    assert len({one, *(hardware_key(runtime) for runtime in others)}) == 4


def test_light_values_do_not_import_torch():
    modules = ", ".join(f"elastivid.core.{name}" for name in ("budget", "cost", "errors", "plan", "point", "state"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
