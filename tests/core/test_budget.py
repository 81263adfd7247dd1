"""`Budget`: what it reads, what it refuses and how it says so."""

from __future__ import annotations

import pytest

from elastivid.core.budget import Budget
from elastivid.core.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5gmacs", Budget(gmacs_per_clip=5)),
        ("0.5 TMACs", Budget(gmacs_per_clip=500)),
        ("40ms", Budget(milliseconds_per_clip=40)),
        ("1.5s", Budget(milliseconds_per_clip=1500)),
        ("20x", Budget(realtime_factor=20)),
        ("600MB", Budget(state_megabytes=600)),
        ("total 2GB", Budget(total_megabytes=2000)),
        ("512tokens", Budget(tokens_per_clip=512)),
        ("5gmacs, 600MB", Budget(gmacs_per_clip=5, state_megabytes=600)),
        ("1e3x, batch 8", Budget(realtime_factor=1000, batch=8)),
        (
            " 40 ms,total 1_000MB,600mb, 16 TOKENS ",
            Budget(milliseconds_per_clip=40, total_megabytes=1000, state_megabytes=600, tokens_per_clip=16),
        ),
    ],
)
def test_reads_limits(text, expected):
    assert Budget.parse(text) == expected


@pytest.mark.parametrize(
    "budget",
    [
        Budget(gmacs_per_clip=0.1 + 0.2, batch=4),
        Budget(milliseconds_per_clip=1 / 3, realtime_factor=1e-9),
        Budget(1e20, 40, 20, 600, 1000, 512, 3),
    ],
)
def test_text_reads_back_to_the_same_budget(budget):
    assert Budget.parse(str(budget)) == budget


def test_batch_states_latency_or_throughput():
    assert Budget.parse("40ms").is_latency
    assert not Budget.parse("40ms, batch 2").is_latency


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5parsecs", r"unknown unit 'parsecs' in '5parsecs'; allowed: '5gmacs' \(or mmacs, tmacs\)"),
        ("40msec", "unknown unit 'msec' in '40msec' .perhaps 'ms'"),
        ("5gflops", "perhaps 'gmacs', half as many"),
        ("600M", "unknown unit 'm' in '600M' .perhaps 'mb'"),
        ("512 token", "perhaps 'tokens'"),
        ("600", "no unit in '600'; allowed"),
        ("1,5gmacs", "no unit in '1' of '1,5gmacs'; decimals are written with a point"),
        ("fast", "cannot read 'fast'.*5gmacs"),
        (" ", "the budget is empty; allowed: '5gmacs'"),
        ("5gmacs,", "a comma of '5gmacs,' has no limit beside it; .*separated by commas"),
        ("5gmacs 600MB", "cannot read"),
        ("5gmacs, 2tmacs", "gmacs_per_clip is given twice"),
        ("batch 2, 40ms, batch 2", "batch is given twice"),
        ("0ms", "'0ms' is no limit: it must be a finite number > 0; leave it out for no limit"),
        ("-5x", "'-5x' is no limit: it must be a finite number > 0"),
        ("nan ms", "'nan ms' is no limit"),
        ("inf x", "'inf x' is no limit"),
        ("1e999MB", "'1e999MB' is no limit"),
        ("0 tokens", "'0 tokens' is no limit"),
        ("1.2.3ms", "cannot read the number '1.2.3'"),
        ("2.5tokens", "tokens_per_clip must be a whole number >= 1, got 2.5"),
        ("nan tokens", "'nan tokens' is no limit"),
        ("40ms, batch 0", "batch must be a whole number >= 1, got 0"),
        ("40ms, batch many", "cannot read the number 'many'"),
        ("batch 8", "at least one limit"),
        ("total 40ms", "'total' goes with MB or GB only"),
        ("600MB, total 500MB", "total 500MB includes .* cannot be less than 600MB"),
    ],
)
def test_refuses_and_teaches(text, message):
    with pytest.raises(BudgetError, match=message):
        Budget.parse(text)


def test_refuses_wrong_values_without_text():
    with pytest.raises(BudgetError, match="at least one limit"):
        Budget()
    with pytest.raises(BudgetError, match="gmacs_per_clip must be a finite number > 0, got -1"):
        Budget(gmacs_per_clip=-1)
    with pytest.raises(BudgetError, match="tokens_per_clip must be a whole number"):
        Budget(tokens_per_clip=1.5)
    with pytest.raises(BudgetError, match="batch must be a whole number >= 1, got nan"):
        Budget(gmacs_per_clip=1, batch=float("nan"))
    with pytest.raises(BudgetError, match=r"realtime_factor must be a number, got '20x'; .* Budget\.parse"):
        Budget(realtime_factor="20x")  # type: ignore[arg-type]


def test_realtime_may_be_written_out():
    assert Budget.parse("20x realtime, 1gmacs") == Budget.parse("20x, 1gmacs")
    with pytest.raises(BudgetError, match="cannot read '40ms realtime'"):
        Budget.parse("40ms realtime")
