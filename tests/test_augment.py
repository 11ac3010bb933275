"""What is done to frames between fusion and head: on valid frames, and nothing in evaluation."""

import pytest
import torch

from speechfuse.augment import SpecAugment, UtteranceNorm, time_warped
from speechfuse.build import build_model, read_recipe, stack_specs
from speechfuse.errors import RecipeError
from speechfuse.recipe import AugmentRecipe, merged
from speechfuse.taskdata import load_tasks
from speechfuse.types import Frames, LayerStack

ALL = {
    "time_warp": 5,
    "time_masks": 2,
    "time_width": 8,
    "feature_masks": 2,
    "feature_width": 4,
}


def frames(rows=(60, 41, 9), dim=16, garbage=7.0):
    hidden = 1 + torch.rand(len(rows), max(rows), dim, generator=torch.Generator().manual_seed(0))
    for row, size in enumerate(rows):
        hidden[row, size:] = garbage
    return Frames(hidden, torch.tensor(rows), 50.0)


def augmented(given=None, seed=0, **options):
    torch.manual_seed(seed)
    given = frames() if given is None else given
    return SpecAugment(AugmentRecipe(**options)).train()(given).hidden


def stretches(masked):
    """Lengths of runs of True."""
    runs = "".join("x" if one else " " for one in masked.tolist()).split()
    return [len(run) for run in runs]


def test_nothing_happens_in_evaluation():
    given = frames()
    assert SpecAugment(AugmentRecipe(**ALL)).eval()(given) is given


def test_padding_is_neither_read_nor_changed():
    one, other = (augmented(frames(garbage=value), **ALL) for value in (7.0, float("nan")))
    for row, size in enumerate((60, 41, 9)):
        assert torch.equal(one[row, :size], other[row, :size])
        assert (one[row, size:] == 7).all()
        assert not torch.equal(one[row, :size], frames().hidden[row, :size])


def test_the_seed_decides():
    one, same, other = (augmented(seed=seed, **ALL) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_masks_are_as_many_and_as_wide_as_asked():
    widths, numbers = set(), set()
    for seed in range(100):
        hidden = augmented(seed=seed, time_masks=2, time_width=8)
        masked = (hidden == 0).all(-1)
        assert torch.equal((hidden == 0).any(-1), masked)  # whole frames
        runs = stretches(masked[0, :60])
        widths.update(runs if len(runs) == 2 else [])
        numbers.add(len(runs))
        assert masked[0].sum() <= 14
    assert widths == set(range(1, 8))
    assert {1, 2} <= numbers <= {0, 1, 2}


def test_features_are_masked_over_all_frames():
    widths = set()
    for seed in range(30):
        hidden = augmented(seed=seed, feature_masks=1, feature_width=5)
        masked = (hidden[0] == 0).all(0)
        widths.add(tuple(stretches(masked)))
        assert (hidden[0][:, ~masked] > 0).all()
    assert widths == {(), (1,), (2,), (3,), (4,)}


def test_widths_may_be_a_share_of_the_utterance_and_a_frame_always_stays():
    wide = [augmented(seed=seed, time_masks=1, time_share=0.1) for seed in range(100)]
    masked = torch.stack([(hidden == 0).all(-1).sum(-1) for hidden in wide])
    assert masked.amax(0).tolist() == [5, 3, 0]  # int(0.1 * 60) - 1 and so on
    short = frames(rows=(3, 1))
    for seed in range(20):
        hidden = augmented(short, seed, time_masks=1, time_width=50)
        assert all((hidden[b, :n] != 0).any() for b, n in enumerate((3, 1)))


def test_time_warp_moves_one_frame_and_keeps_the_ends():
    """Of a straight line the two parts stay straight, with other slopes."""
    line = torch.arange(60.0)[:, None]
    torch.manual_seed(3)
    moved = 0
    for _ in range(20):
        warped = time_warped(line, 5)
        assert warped.shape == line.shape
        assert abs(float(warped[0])) < 1
        assert abs(float(warped[-1]) - 59) < 1
        assert (warped - line).abs().max() < 6
        moved += not torch.allclose(warped, line)
    assert moved > 10
    assert time_warped(line[:10], 5).equal(line[:10])


def test_gradients_pass_through_what_is_kept():
    given = frames()
    hidden = given.hidden.clone().requires_grad_()
    torch.manual_seed(0)
    module = SpecAugment(AugmentRecipe(time_masks=2, time_width=8)).train()
    out = module(Frames(hidden, given.lengths, 50.0)).hidden
    out[:, :9].sum().backward()
    assert torch.equal(hidden.grad != 0, (out != 0) & (torch.arange(60) < 9)[None, :, None])


@pytest.mark.parametrize("variance", [False, True])
def test_utterance_norm_centres_valid_frames(variance):
    given = frames(garbage=1e4)
    out = UtteranceNorm(variance=variance)(given).hidden
    for row, size in enumerate((60, 41, 9)):
        valid = given.hidden[row, :size]
        expected = valid - valid.mean(0)
        if variance:
            expected = expected / valid.std(0, correction=0)
        torch.testing.assert_close(out[row, :size], expected)
        assert (out[row, size:] == 0).all()


def test_a_task_asks_for_it_and_its_head_reads_it(workspace, tone_recipe):
    change = {"augment": ALL, "utterance_norm": "mean_variance"}
    recipe = read_recipe(merged(tone_recipe, {"tasks": {"asr": change}}))
    tasks = {name: data.task for name, data in load_tasks(recipe).items()}
    model = build_model(recipe, stack_specs(recipe), tasks)
    layer = 5 + torch.randn(2, 50, 24)
    stack = LayerStack((layer,), torch.tensor([50, 30]), 100.0)
    torch.manual_seed(0)
    plain, once, twice = (model.train().fuse([stack], t).hidden for t in ("emotion", "asr", "asr"))
    assert torch.equal(plain, layer)
    assert not torch.equal(once, twice)
    steady = model.eval().fuse([stack], "asr").hidden
    torch.testing.assert_close(steady[1, :30].mean(0), torch.zeros(24), atol=1e-5, rtol=0)
    assert torch.equal(steady, model.fuse([stack], "asr").hidden)
    bare = build_model(read_recipe(tone_recipe), stack_specs(recipe), tasks)
    assert model.state_dict().keys() == bare.state_dict().keys()


def test_an_utterance_vector_has_nothing_to_augment(workspace, tone_recipe):
    tone_recipe["fusion"] = {"interface": {"kind": "mhfa", "heads": 2, "compression": 8}}
    task = {**tone_recipe["tasks"]["emotion"], "utterance_norm": "mean"}
    recipe = read_recipe(tone_recipe | {"tasks": {"emotion": task}})
    tasks = {name: data.task for name, data in load_tasks(recipe).items()}
    with pytest.raises(
        RecipeError, match=r"'emotion': interface 'mhfa' gives one vector .* augment"
    ):
        build_model(recipe, stack_specs(recipe), tasks)
