"""Diarization: head and task, and a recipe that learns it from mixtures."""

import itertools
import math

import pytest
import torch

from speechfuse.build import read_recipe
from speechfuse.data.manifests import prepare
from speechfuse.errors import DataError, RecipeError
from speechfuse.heads.diarization import Diarization, _filtered, activity
from speechfuse.tasks import diarization
from speechfuse.train import train_run
from speechfuse.types import Frames, Tokens, Utterance

TARGETS = Tokens(
    torch.tensor([[0, 0, 100, 1, 60, 180], [1, 20, 60, 0, 0, 0]]), torch.tensor([6, 3])
)


def made(**options):
    torch.manual_seed(0)
    return Diarization(8, num_classes=2, project=8, lstm_dim=8, **options).eval()


def frames(rows=(9, 5)):
    hidden = torch.randn(len(rows), max(rows), 8, generator=torch.Generator().manual_seed(2))
    return Frames(hidden, torch.tensor(rows), 50.0)


def utterance(turns, name="u"):
    return Utterance(name, "u.wav", speaker="pair", extra={"turns": turns})


def test_a_frame_belongs_to_the_turn_that_its_middle_lies_in():
    """At 50 Hz frame t is heard at 20 t + 10 ms; at another rate the same times give others."""
    found = activity(TARGETS, 2, 9, 50.0)
    assert found[0, :, 0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert found[0, :, 1].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert found[1, :, 1].tolist() == [0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert found[1, :, 0].sum() == 0
    assert activity(TARGETS, 2, 9, 100.0)[0, :, 1].tolist() == [0] * 6 + [1] * 3


def test_the_loss_is_that_of_the_better_order():
    head, given = made(), frames()
    logits = head.logits(given).tolist()
    expected = 0.0
    for row, size in enumerate((9, 5)):
        wanted = activity(TARGETS, 2, 9, 50.0)[row].tolist()
        costs = []
        for order in itertools.permutations(range(2)):
            cost = 0.0
            for t in range(size):
                for output, speaker in enumerate(order):
                    chance = 1 / (1 + math.exp(-logits[row][t][output]))
                    cost -= math.log(chance if wanted[t][speaker] else 1 - chance)
            costs.append(cost)
        expected += min(costs)
    loss = head.loss(given, TARGETS)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert loss.count == 28


def test_swapped_speakers_cost_the_same():
    swapped = Tokens(torch.tensor([[1, 0, 100, 0, 60, 180], [0, 20, 60, 0, 0, 0]]), TARGETS.lengths)
    head = made()
    one, other = (head.loss(frames(), t).total for t in (TARGETS, swapped))
    torch.testing.assert_close(one, other)


def test_the_median_filter_takes_the_majority():
    column = torch.tensor([1, 0, 1, 1, 0, 0, 0, 1, 0, 0], dtype=torch.bool)[:, None]
    assert _filtered(column, 3)[:, 0].int().tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert torch.equal(_filtered(column, 1), column)
    with pytest.raises(RecipeError, match="median 4 is even; use 5"):
        made(median=4)


def test_predictions_are_turns_in_seconds():
    head = made(lstm_layers=0, median=1)
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.tensor([1.0, -1.0]))
    assert head.predict(frames()) == [[(0, 0.0, 0.18)], [(0, 0.0, 0.1)]]


def test_targets_are_milliseconds_whatever_the_frame_rate():
    task = diarization.Diarization()
    spoken = [utterance("b 0 1.5; a 1.25 2"), utterance("c 0 1")]
    task.fit(spoken)
    found = task.targets(spoken)
    assert found.ids.tolist() == [[0, 0, 1500, 1, 1250, 2000], [0, 0, 1000, 0, 0, 0]]
    assert found.lengths.tolist() == [6, 3]
    assert task.head_options() == {"num_classes": 2}
    with pytest.raises(DataError, match="utterance z has 3 speakers"):
        task.check([utterance("a 0 1; b 1 2; c 2 3", "z")])
    with pytest.raises(DataError, match="utterance z: turn 'a 0'"):
        task.check([utterance("a 0", "z")])


@pytest.fixture
def mixtures(workspace, tiny_corpus):
    return prepare(tiny_corpus, workspace / "corpora" / "mixed", mix=2)


def test_mixtures_hold_what_their_turns_say(mixtures):
    speakers = {"train": set(), "dev": set(), "test": set()}
    for u in mixtures.utterances:
        turns = diarization.parse_turns(u.label("turns"))
        names = diarization.speakers_of(turns)
        assert len(names) == 2
        assert [t.speaker for t in turns] == names * 2
        assert max(t.end for t in turns) == pytest.approx(u.duration, abs=1e-3)
        speakers[u.split] |= set(names)
        assert u.split != "test" or u.speaker in ("s6+s7", "s7+s6")
        for name in names:  # nobody interrupts themselves
            one, two = (t for t in turns if t.speaker == name)
            assert one.end <= two.start + 1e-3
    assert speakers == {"train": {"s0", "s1", "s2", "s3"}, "dev": {"s4", "s5"}, "test": {"s6", "s7"}}  # fmt: skip  # noqa: E501
    assert len(mixtures.utterances) == 16
    overlaps = [
        a.end > b.start
        for u in mixtures.utterances
        for a, b in itertools.pairwise(diarization.parse_turns(u.label("turns")))
    ]
    assert 0.3 < sum(overlaps) / len(overlaps) < 1


def test_mixtures_are_the_same_each_time(mixtures, workspace, tiny_corpus):
    again = prepare(tiny_corpus, workspace / "other" / "mixed", mix=2)
    for one, other in zip(mixtures.utterances, again.utterances, strict=True):
        assert (one.id, one.extra) == (other.id, other.extra)
        assert one.audio.read_bytes() == other.audio.read_bytes()


def test_too_few_speakers_are_told(workspace, tiny_corpus):
    with pytest.raises(DataError, match="no split with 5 speakers of 2 clips each"):
        prepare(tiny_corpus, workspace / "corpora" / "mixed", mix=5)
    with pytest.raises(DataError, match="the one or the other"):
        prepare(tiny_corpus, workspace / "corpora" / "mixed", mix=2, join=2)


@pytest.mark.recipe
def test_a_recipe_trains_on_mixtures(mixtures, workspace, tone_recipe):
    """Training mixtures of four voices, each a tone of its own; more than half is told apart."""
    recipe = dict(tone_recipe)
    head = {"kind": "diarization", "project": 24, "lstm_dim": 24, "median": 3}
    recipe["tasks"] = {"diarization": {"corpus": str(mixtures.folder), "head": head}}
    recipe["training"] = {"steps": 60, "batch_seconds": 8, "learning_rate": 1e-2, "keep": "last"}
    metrics = train_run(read_recipe(recipe), workspace / "run")
    assert 0 <= metrics["test"]["diarization"]["der"]["value"] < 0.6
    log = (workspace / "run" / "log.csv").read_text().splitlines()
    losses = [float(line.split(",")[-1]) for line in log if "train/diarization/loss" in line]
    assert losses[-1] < 0.7 * losses[0]


def test_a_pooled_vector_has_no_turns(workspace, mixtures, tone_recipe):
    recipe = dict(tone_recipe)
    recipe["fusion"] = {"interface": {"kind": "mhfa"}}
    recipe["tasks"] = {"diarization": {"corpus": str(mixtures.folder), "head": {"kind": "diarization"}}}  # fmt: skip  # noqa: E501
    with pytest.raises(RecipeError, match="a head that predicts turns needs every frame"):
        train_run(read_recipe(recipe), workspace / "run")
