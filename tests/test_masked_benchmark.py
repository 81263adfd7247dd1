"""The benchmark of masked pre-training: nothing that is scored is trained on, runs come in an order that works."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

import masked
import masked_page

from elastivid.evaluate.statistics import Comparison


def test_runs_come_after_what_they_need_and_have_folders_of_their_own():
    jobs = masked.planned()
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for number, job in enumerate(jobs):
        assert {needed.name for needed in job.needs} <= set(names[:number]), job.name
    assert {f"actions/{method}-{fold}" for method in masked.METHODS for fold in range(5)} <= set(names)


def test_clips_of_hmdb51_are_known_by_their_names():
    assert masked.HMDB51.search("TrumanShow_wave_f_nm_np1_fr_med_26.avi")
    assert masked.HMDB51.search("org__hmdb51_cartwheel_f_cm_np2_le_med_6.avi")
    assert not masked.HMDB51.search("v_Basketball_g01_c01.avi")


def test_methods_start_from_the_same_encoder_and_differ_in_what_hides():
    args = Namespace(out=Path("nowhere"))
    plain, half = (masked.pretraining(args, name) for name in ("videomae", "videomae-50"))
    assert plain.config.mask == 0.75
    assert half.config.mask == 0.5
    assert plain.gmacs(plain.build()) < half.gmacs(half.build())
    assert masked.pretraining(args, "umt").build().encoder.config == plain.build().encoder.config == masked.ENCODER


def test_a_gain_that_many_tests_take_away_is_not_called_one():
    gain = Comparison(0.05, 0.01, 0.09, 0.95, 0.02, 50)
    assert "not distinguishable" in masked_page.verdict(gain, 0.16)
    assert "not distinguishable" not in masked_page.verdict(gain, 0.04)
