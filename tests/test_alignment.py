import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechfuse.alignment import align, aligned_specs, common_lengths, spread_layers
from speechfuse.errors import ShapeError
from speechfuse.types import LayerStack, StackSpec


def by_hand(values, rate, target_rate, frames):
    """Linear interpolation at true times, in Python floats."""
    out = []
    for j in range(frames):
        position = min(max((j + 0.5) * rate / target_rate - 0.5, 0.0), len(values) - 1.0)
        low = int(position)
        high = min(low + 1, len(values) - 1)
        out.append(values[low] + (position - low) * (values[high] - values[low]))
    return out


def test_frames_are_read_at_their_true_times():
    values = [1.0, 5.0, 2.0, 8.0]
    coarse = LayerStack((torch.tensor(values)[None, :, None],), torch.tensor([4]), 40.0)
    fine = LayerStack((torch.zeros(1, 5, 1),), torch.tensor([5]), 50.0)
    out = align([coarse, fine])[0]
    assert out.frame_rate == 50.0
    expected = by_hand(values, 40.0, 50.0, 5)
    torch.testing.assert_close(out.layers[0][0, :, 0], torch.tensor(expected))


def test_a_linear_ramp_stays_a_ramp_in_time():
    """Reading by the ratio of lengths instead would stretch the clip."""
    time = (torch.arange(100) + 0.5) / 25  # seconds of each 25 Hz frame
    coarse = LayerStack((time[None, :, None],), torch.tensor([100]), 25.0)
    fine = LayerStack((torch.zeros(1, 197, 1),), torch.tensor([197]), 50.0)
    out = align([coarse, fine])[0].layers[0][0, 1:-1, 0]
    torch.testing.assert_close(out, (torch.arange(1, 196) + 0.5) / 50)


def test_layers_are_anchored_at_both_ends(stack):
    layers = stack(layers=3).layers
    spread = spread_layers(layers, 5)
    assert spread[0] is layers[0]
    assert spread[2] is layers[1]  # what coincides is not copied
    assert spread[4] is layers[2]
    torch.testing.assert_close(spread[1], (layers[0] + layers[1]) / 2)


def test_equal_rates_cut_the_edge_frames_only(stack):
    one, other = stack(lengths=(7, 4)), stack(lengths=(8, 4))
    out = align([one, other])
    assert [s.layers[0].shape[1] for s in out] == [7, 7]
    assert out[1].layers[0].data_ptr() == other.layers[0].data_ptr()  # a view, nothing moved
    assert out[0].lengths.tolist() == [7, 4]
    align([stack(lengths=(7,)), stack(lengths=(12,))])
    with pytest.raises(ShapeError, match="more than 5 frames"):
        align([stack(lengths=(7,)), stack(lengths=(13,))])


def test_other_audio_is_refused_at_other_rates_too(stack):
    with pytest.raises(ShapeError, match="same audio"):
        align([stack(lengths=(100,), rate=50.0), stack(lengths=(70,), rate=25.0)])


def test_the_common_frames_are_known_without_any_tensor(stack):
    stacks = [stack(lengths=(9, 4), rate=40.0), stack(lengths=(12, 6)), stack(lengths=(11, 7))]
    lengths = common_lengths([s.lengths for s in stacks], [s.frame_rate for s in stacks])
    assert lengths.tolist() == align(stacks)[0].lengths.tolist() == [11, 6]


def test_specs_agree_with_tensors(stack):
    stacks = [stack(layers=3, dim=8, lengths=(10,)), stack(layers=5, lengths=(20,), rate=100.0)]
    assert [s.spec for s in align(stacks)] == aligned_specs([s.spec for s in stacks])
    assert aligned_specs([StackSpec(13, 768, 50.0)]) == [StackSpec(13, 768, 50.0)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 49), st.sampled_from([160, 320, 400, 640, 1280]), st.integers(1, 9)
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.integers(4000, 40000), min_size=1, max_size=3),
)
def test_any_encoders_align_alone_as_in_a_batch(encoders, samples):
    """Depths 1 to 49, strides 160 to 1280; padding is garbage and must never be read."""

    def stacks(rows):
        made = []
        for index, (layers, stride, dim) in enumerate(encoders):
            sizes = torch.tensor([-(-samples[r] // stride) for r in rows])
            hidden = []
            for layer in range(layers):
                batch = torch.full((len(rows), int(sizes.max()), dim), 1e6)
                for row, (r, n) in enumerate(zip(rows, sizes.tolist(), strict=True)):
                    seed = torch.Generator().manual_seed(1000 * index + 10 * layer + r)
                    batch[row, :n] = torch.randn(n, dim, generator=seed)
                hidden.append(batch)
            made.append(LayerStack(tuple(hidden), sizes, 16000 / stride))
        return made

    together = align(stacks(range(len(samples))))
    depth = max(layers for layers, _, _ in encoders)
    finest = min(stride for _, stride, _ in encoders)
    for row, count in enumerate(samples):
        alone = align(stacks([row]))
        for one, many in zip(alone, together, strict=True):
            size = int(one.lengths[0])
            assert size == int(many.lengths[row]) == -(-count // finest)
            assert len(one.layers) == len(many.layers) == depth
            for a, b in zip(one.layers, many.layers, strict=True):
                torch.testing.assert_close(a[0, :size], b[row, :size])
                assert a[0, :size].abs().max() < 10
