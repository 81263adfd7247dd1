"""`plan`: from a model's name and a budget to a plan, measuring what this machine has not measured yet."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

from elastivid.core.budget import Budget
from elastivid.core.plan import Plan
from elastivid.core.point import Sampling
from elastivid.planning.plan import Fixed, Planner
from elastivid.planning.profile import (
    SECONDS,
    Profile,
    as_it_is_now,
    load_profile,
    measure,
    save_profile,
    ways_of_running,
)
from elastivid.planning.reading import Reading, Source, load_reading, measure_reading, save_reading
from elastivid.planning.subject import Subject, describe

TIMED = {"milliseconds_per_clip", "realtime_factor"}
Progress = Callable[[float, float, str], None]


def plan(
    model: str,
    budget: Budget | str,
    *,
    sampling: Sampling | None = None,
    source: Source | str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The best known plan for a model within a budget on this machine.

    A budget that limits time needs a profile: the first one measures this machine for about two minutes per model and
    keeps the result in the user's cache folder.

    Args:
        model: shipped name, weights file or `family/preset`.
        budget: as text ("20x", "40ms, 600MB") or as a value.
        sampling: how windows lie in a video; None takes the model's own frames and size.
        source: the video to be read, "1920x1080@25" as text; None is 1280x720 at 30 frames/s. Matters for x realtime.
        progress: called while measuring with seconds done, seconds in all, what is measured.

    Raises:
        BudgetError: the budget cannot be read, or nothing keeps it; the message names the cheapest plan.
        UnknownNameError, WeightsError, PlanError: there is no such model, or it cannot be planned.
    """
    wanted = Budget.parse(budget) if isinstance(budget, str) else budget
    video = Source.parse(source) if isinstance(source, str) else source
    return planner_for(describe(model), wanted, sampling=sampling, source=video, progress=progress).plan(wanted)


def planner_for(
    subject: Subject,
    budget: Budget,
    *,
    sampling: Sampling | None = None,
    source: Source | None = None,
    fixed: Fixed | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> Planner:
    """A planner with everything that `budget` needs to know: from the cache, or measured now and kept.

    Args:
        subject: the model.
        budget: tells whether times are needed at all.
        sampling, source, fixed: see `Planner`.
        again: measure although there is a profile.
        progress: called while measuring.
    """
    limits = set(budget.limits())
    profile = None if again else load_profile(subject)
    reading = None if again else load_reading()
    if profile is None and (again or limits & TIMED):
        profile = profile_now(subject, progress=progress)
    elif profile is not None and limits & TIMED:
        profile = checked_now(profile)
    if reading is None and (again or "realtime_factor" in limits):
        reading = read_now(progress)
    return Planner(subject, profile=profile, reading=reading, source=source, sampling=sampling, fixed=fixed)


def profile_now(subject: Subject, *, seconds: float = SECONDS, progress: Progress | None = None) -> Profile:
    """Measure a model on this machine and keep the profile."""
    import torch

    from elastivid.planning.meter import RealMeter

    ways = ways_of_running(torch.get_num_threads(), os.cpu_count())
    profile = measure(subject, RealMeter(subject), runtimes=ways, seconds=seconds, progress=progress)
    _keep(lambda: save_profile(profile))
    return profile


def checked_now(profile: Profile) -> Profile:
    """A profile of before, its times made longer where this machine is slower at the moment: some seconds of work."""
    from elastivid.planning.meter import RealMeter

    return as_it_is_now(profile, RealMeter(profile.subject))


def read_now(progress: Progress | None = None) -> Reading:
    """Measure what reading video costs on this machine and keep the result."""
    reading = measure_reading(progress)
    _keep(lambda: save_reading(reading))
    return reading


def _keep(save: Callable[[], object]) -> None:
    """Save what was measured; where the cache folder cannot be written, say so and go on with it."""
    try:
        save()
    except OSError as error:
        warnings.warn(
            f"what was measured could not be kept ({error}), so it will be measured again next time; name a folder "
            "that can be written with ELASTIVID_CACHE",
            stacklevel=3,
        )
