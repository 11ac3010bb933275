from fractions import Fraction

import pytest

from speechfuse.data.crops import common_period, random_spans


@pytest.mark.parametrize(
    ("rates", "period"),
    [((50.0,), "1/50"), ((50.0, 50.0), "1/50"), ((50.0, 40.0), "1/10"), ((50.0, 12.5), "2/25")],
)
def test_frames_of_all_rates_begin_together(rates, period):
    assert common_period(rates) == Fraction(period)


def test_crops_of_all_upstreams_span_the_same_time():
    """Two of 50 Hz, one with an edge frame less, and one of 40 Hz; 3.2 s is shorter than a crop."""
    frames = [[500, 160, 200], [499, 159, 199], [400, 128, 160]]
    starts = set()
    for seed in range(1000):
        whisper, hubert, slow = random_spans(frames, [50.0, 50.0, 40.0], 4.0, seed)
        assert whisper == [whisper[0], slice(0, 160), slice(0, 200)]
        assert hubert == [whisper[0], slice(0, 159), slice(0, 199)]
        assert whisper[0].stop - whisper[0].start == 200
        assert slow[0].stop - slow[0].start == 160
        assert whisper[0].start / 50 == slow[0].start / 40
        starts.add(slow[0].start / 40)
    assert min(starts) == 0
    assert max(starts) == 5.9  # six seconds are left over, less the frame that one lacks
    assert len(starts) == 60


def test_the_same_seed_cuts_the_same_crop():
    frames = [[500] * 8]
    one, two, other = (random_spans(frames, [50.0], 1.0, seed) for seed in (1, 1, 2))
    assert one == two
    assert one != other
    assert len({span.start for span in one[0]}) > 4
