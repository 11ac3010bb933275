import numpy as np
import pytest
import torch

from speechfuse.audio import mel_filters, pad_clips
from speechfuse.errors import RecipeError
from speechfuse.upstreams.filterbank import Filterbank


def test_frames_are_centred_in_their_cells():
    """A click in the middle of cell 5 is loudest in frame 5, whatever the rate."""
    for rate, hop in ((100.0, 160), (50.0, 320), (25.0, 640)):
        clip = torch.zeros(10 * hop)
        clip[5 * hop + hop // 2] = 1.0
        stack = Filterbank(frame_rate=rate)(pad_clips([clip]))
        assert stack.lengths.tolist() == [10]
        assert int(stack.layers[0][0].sum(-1).argmax()) == 5


def test_values_are_log_mel_energies():
    clip = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.1
    hidden = Filterbank()(pad_clips([clip])).layers[0][0]
    start = 40 * 160 + 80 - 200  # window of frame 40
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(clip[start : start + 400].numpy() * taper)) ** 2
    mel = np.log10(np.maximum(power @ mel_filters(80, 201).numpy(), 1e-10))
    np.testing.assert_allclose(hidden[40].numpy(), (mel + 4) / 4, atol=1e-4)


def test_a_batch_equals_each_clip_alone():
    clips = [torch.randn(n) for n in (8000, 3210, 81)]
    together = Filterbank()(pad_clips(clips))
    for row, clip in enumerate(clips):
        alone = Filterbank()(pad_clips([clip]))
        size = int(alone.lengths[0])
        assert size == int(together.lengths[row])
        torch.testing.assert_close(alone.layers[0][0], together.layers[0][row, :size])


@pytest.mark.parametrize(("rate", "near"), [(44.1, "40 or 50"), (999, "800 or 1000"), (0.3, "1")])
def test_a_rate_that_is_no_divisor_is_refused(rate, near):
    with pytest.raises(RecipeError, match=f"{rate} is no divisor of 16000 Hz; use {near}$"):
        Filterbank(frame_rate=rate)


@pytest.mark.parametrize("rate", [100.0, 62.5, 50.0, 40.0, 6.4])
def test_the_plan_states_the_shortest_clip(rate):
    part = Filterbank(frame_rate=rate)
    shortest = part.plan.min_samples
    assert part(pad_clips([torch.ones(shortest)])).lengths.tolist() == [1]
    assert part.plan.spec.frame_rate == rate
