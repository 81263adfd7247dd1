"""One function over many jobs, in this process or in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")


def in_processes(function: Callable[[Job], None], jobs: Sequence[Job], processes: int, *, chunk: int = 1) -> None:
    """Call `function` with every job; the first error of one ends it and is raised here.

    Args:
        function: of a module, as processes of their own import it.
        jobs: what can be pickled.
        processes: how many work at the same time; 1 stays in this one.
        chunk: jobs that a process is handed at once.
    """
    if processes <= 1:
        for job in jobs:
            function(job)
        return
    spawn = multiprocessing.get_context("spawn")  # forking a process that runs threads can hang
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        list(pool.map(function, jobs, chunksize=chunk))
