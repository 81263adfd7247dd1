"""What `elastivid plan` prints: what is read, what the model spends, where it runs, what that costs, and why."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from typing import Any

import numpy as np

from elastivid.core.budget import Budget
from elastivid.core.cost import format_macs
from elastivid.core.errors import BudgetError
from elastivid.core.plan import Plan
from elastivid.planning.plan import Planner
from elastivid.search.printing import pace

WIDTH = 118
LABEL = 12


def lines_of_plan(plan: Plan, planner: Planner, budget: Budget) -> list[str]:
    """The plan for people."""
    sampling, runtime = plan.sampling, plan.runtime
    subject = planner.subject
    available = subject.available_tokens(sampling.frames, sampling.size)
    channels = f"{plan.point.width} of {subject.full_width} channels" if plan.point.width else "full width"
    threads = f"{runtime.threads or 'default'} thread" + ("s" if runtime.threads != 1 else "")
    workers = f"{runtime.workers} workers of {threads} each" if runtime.workers > 1 else threads
    lines = [
        f"plan {plan.fingerprint} for {plan.model} within {plan.budget}",
        "",
        *_entry(
            "reads",
            f"{sampling.frames} frames of {sampling.size} px from {sampling.window_seconds:g} s of video, every "
            f"{sampling.stride_seconds:g} s, {sampling.decode} decoding",
        ),
        *_entry("spends", f"{plan.point.tokens or available} of {available} tokens, {channels}"),
        *_entry("runs", f"{runtime.precision}, {workers}, batches of {runtime.batch}"),
        *_entry("predicted", "; ".join(_predictions(plan, planner))),
        "",
        "why",
    ]
    for name, reason in plan.reasons.items():
        lines += _entry(f"  {name}", reason)
    lines += ["", *_neighbours(plan, planner, budget), *_profile_lines(planner)]
    return lines


def line_of_index_plan(plan: Plan) -> str:
    """What an index within a budget will read and spend, in one line."""
    sampling, parts = plan.sampling, []
    parts.append(f"{sampling.frames} frames of {sampling.size} px every {sampling.stride_seconds:g} s")
    parts.append(sampling.decode + " decoding")
    parts.append(f"{plan.point.tokens or 'all'} tokens" + (f", width {plan.point.width}" if plan.point.width else ""))
    parts += [plan.runtime.precision, format_macs(plan.cost.macs) + " per window"]
    predicted = "" if plan.realtime_factor is None else f"; {pace(plan.realtime_factor)} realtime predicted"
    return f"plan {plan.fingerprint} within {plan.budget}: {', '.join(parts)}{predicted}"


def plan_as_json(plan: Plan, planner: Planner) -> str:
    """The plan as `Plan.from_json` reads it, with what the profile knows of its own error beside it."""
    content: dict[str, Any] = {"plan": json.loads(plan.to_json()), "profile": None}
    if planner.profile is not None:
        sizes = np.abs(planner.profile.errors)
        content["profile"] = {
            "machine": planner.profile.machine,
            "measured_at": planner.profile.measured_at,
            "seconds": planner.profile.seconds,
            "points": len(planner.profile.rows),
            "median_error": round(float(np.median(sizes)), 4) if len(sizes) else None,
            "margin": round(planner.profile.margin, 4),
        }
    return json.dumps(content, indent=2)


def _predictions(plan: Plan, planner: Planner) -> list[str]:
    cost, runtime = plan.cost, plan.runtime
    parts = [f"{format_macs(cost.macs)} per clip"]
    if cost.milliseconds is not None:
        shared = " (all clips under way share the time)" if runtime.batch * runtime.workers > 1 else ""
        parts.append(f"{cost.milliseconds:.3g} ms per clip{shared}")
    if plan.realtime_factor is not None:
        parts.append(f"{plan.realtime_factor:.3g}x realtime with reading {planner.source}")
    return [*parts, f"{cost.activation_bytes / 1e6:.3g} MB above {cost.parameter_bytes / 1e6:.3g} MB of weights"]


def _neighbours(plan: Plan, planner: Planner, budget: Budget) -> list[str]:
    """What half and twice the budget would give."""
    lines = []
    for name, factor in (("cheaper", 0.5), ("dearer", 2.0)):
        scaled = scale(budget, factor)
        try:
            other = planner.plan(scaled)
        except BudgetError:
            lines += _entry(name, f"{scaled}: nothing this cheap exists")
            continue
        if other.fingerprint == plan.fingerprint:
            lines += _entry(
                name, f"{scaled}: the same, {'the model has no more' if factor > 1 else 'the limit is far'}"
            )
            continue
        lines += _entry(name, f"{scaled}: {_short(other, planner)}")
    return lines


def scale(budget: Budget, factor: float) -> Budget:
    """A budget that allows `factor` times as much of everything that it limits."""
    changed: dict[str, Any] = {}
    for name, limit in budget.limits().items():
        value = limit / factor if name == "realtime_factor" else limit * factor
        changed[name] = max(1, round(value)) if name == "tokens_per_clip" else float(f"{value:.4g}")
    return replace(budget, **changed)


def _short(plan: Plan, planner: Planner) -> str:
    sampling = plan.sampling
    available = planner.subject.available_tokens(sampling.frames, sampling.size)
    parts = [f"{plan.point.tokens or available} tokens"]
    if plan.point.width:
        parts.append(f"width {plan.point.width}")
    if sampling != planner.sampling:
        parts.append(f"{sampling.frames} frames of {sampling.size} px, {sampling.decode}")
    parts.append(plan.runtime.precision)
    parts.append(format_macs(plan.cost.macs))
    if plan.cost.milliseconds is not None:
        parts.append(f"{plan.cost.milliseconds:.3g} ms")
    if plan.realtime_factor is not None:
        parts.append(f"{plan.realtime_factor:.3g}x")
    return ", ".join(parts)


def _profile_lines(planner: Planner) -> list[str]:
    profile = planner.profile
    if profile is None:
        return _entry("profile", "none on this machine yet, so no times; --profile again measures in about two minutes")
    sizes = np.abs(profile.errors)
    if not len(sizes):
        return _entry("profile", f"{len(profile.rows)} points on {profile.machine}; too few to know their error")
    text = (
        f"{len(profile.rows)} points in {profile.seconds:.0f} s on {profile.machine}, {profile.measured_at[:10]}; each "
        f"predicted from the others is off by {np.median(sizes):.1%} (median), {np.quantile(sizes, 0.9):.1%} (1 in 10)"
    )
    return _entry("profile", text)


def _entry(name: str, text: str) -> list[str]:
    """A label and wrapped text."""
    wrapped = textwrap.wrap(text, WIDTH - LABEL) or [""]
    return [f"{name:<{LABEL}}{wrapped[0]}", *(" " * LABEL + line for line in wrapped[1:])]
