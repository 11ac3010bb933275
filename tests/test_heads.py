"""The contract of heads, over every part of the catalog, and what each is by definition."""

import itertools
import math
from collections import defaultdict

import pytest
import torch
from torch.nn import functional as F

from speechfuse import catalog
from speechfuse.errors import RecipeError
from speechfuse.heads.classifier import Classifier
from speechfuse.heads.ctc import CTC, BidirectionalLSTM, frames_needed
from speechfuse.heads.ctc_search import FlashlightSearch, greedy, prefix_beam
from speechfuse.heads.speaker import Speaker
from speechfuse.types import Frames, Tokens

SIZES = {"num_tokens": 6, "num_classes": 3}
# Every head as it is by default, and options that compute something else.
HEADS = [(name, {}) for name in catalog.HEADS] + [
    ("ctc", {"join": 2, "lstm_layers": 0}),
    ("ctc", {"search": "beam", "normalize": "none"}),
    ("classifier", {"mean_std": True, "standardize": True}),
    ("classifier", {"mean_std": True, "hidden": 16}),
    ("speaker", {"standardize": True}),
    ("diarization", {"median": 1, "lstm_layers": 0}),
]


def made(name, **options):
    torch.manual_seed(0)
    cls = catalog.HEADS[name]
    taken = cls.__init__.__annotations__
    return cls(8, **{k: v for k, v in SIZES.items() if k in taken}, **options).eval()


def frames(garbage=0.0, rows=(9, 5)):
    hidden = torch.randn(len(rows), max(rows), 8, generator=torch.Generator().manual_seed(2))
    for row, size in enumerate(rows):
        hidden[row, size:] = garbage
    return Frames(hidden, torch.tensor(rows), 50.0)


def targets(name):
    if catalog.HEADS[name].predicts == "tokens":
        return Tokens(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2]))
    if catalog.HEADS[name].predicts == "turns":
        turns = [[0, 0, 100, 1, 60, 180], [1, 20, 60, 0, 0, 0]]
        return Tokens(torch.tensor(turns), torch.tensor([6, 3]))
    return Tokens(torch.tensor([[0], [2]]), torch.tensor([1, 1]))


def flat(predictions):
    return [torch.as_tensor(p, dtype=torch.float32).flatten() for p in predictions]


@pytest.mark.parametrize(("name", "options"), HEADS)
class TestHead:
    def test_padding_changes_nothing(self, name, options):
        head = made(name, **options)
        one, other = frames(1e4), frames(-3.0)
        for a, b in zip(flat(head.predict(one)), flat(head.predict(other)), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(
            head.loss(one, targets(name)).total, head.loss(other, targets(name)).total
        )

    def test_alone_equals_in_a_batch(self, name, options):
        head, given, wanted = made(name, **options), frames(), targets(name)
        alone = Frames(given.hidden[1:, :5], given.lengths[1:], 50.0)
        one, many = flat(head.predict(alone))[0], flat(head.predict(given))[1]
        torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-5)
        parts = []
        for row, size in enumerate((9, 5)):
            part = Frames(given.hidden[row : row + 1, :size], given.lengths[row : row + 1], 50.0)
            length = int(wanted.lengths[row])
            target = Tokens(wanted.ids[row : row + 1, :length], wanted.lengths[row : row + 1])
            parts.append(head.loss(part, target))
        whole = head.loss(given, wanted)
        assert whole.count == sum(p.count for p in parts)
        torch.testing.assert_close(whole.total, sum(p.total for p in parts))

    def test_every_parameter_gets_a_gradient(self, name, options):
        head = made(name, **options)
        if not list(head.parameters()):
            pytest.skip("nothing is trained")
        head.loss(frames(), targets(name)).total.backward()
        for label, parameter in head.named_parameters():
            assert parameter.grad is not None, label
            assert parameter.grad.abs().sum() > 0, label

    def test_save_and_load_give_the_same_predictions(self, name, options):
        head, fresh = made(name, **options), made(name, **options)
        for tensor in fresh.state_dict().values():
            torch.nn.init.uniform_(tensor) if tensor.is_floating_point() else tensor.zero_()
        fresh.load_state_dict(head.state_dict())
        for a, b in zip(flat(head.predict(frames())), flat(fresh.predict(frames())), strict=True):
            assert torch.equal(a, b)


def test_ctc_loss_equals_the_sum_over_all_alignments():
    head = CTC(8, num_tokens=4, project=8, lstm_layers=0, dropout=0.0).eval()
    given = frames(rows=(5,))
    log_probs = head.log_probs(given)[0][0].tolist()
    total = 0.0
    for path in itertools.product(range(4), repeat=5):
        if [t for t, _ in itertools.groupby(path) if t] == [2, 2]:
            total += math.exp(sum(log_probs[i][t] for i, t in enumerate(path)))
    loss = head.loss(given, Tokens(torch.tensor([[2, 2]]), torch.tensor([2])))
    assert float(loss.total.detach()) == pytest.approx(-math.log(total), rel=1e-5)
    assert loss.count == 2


def test_a_target_longer_than_its_frames_counts_for_nothing():
    head = made("ctc")
    ids = Tokens(torch.tensor([[1, 2, 3], [4, 4, 4]]), torch.tensor([3, 3]))
    given = frames(rows=(9, 4))
    assert frames_needed([4, 4, 4]) == 5
    loss = head.loss(given, ids)
    assert torch.isfinite(loss.total)
    assert loss.count == 3
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_joined_frames_divide_the_rate():
    head = CTC(8, num_tokens=4, join=2).eval()
    log_probs, lengths = head.log_probs(frames(rows=(9, 5)))
    assert lengths.tolist() == [5, 3]
    assert log_probs.shape == (2, 5, 4)
    assert log_probs.dtype == torch.float32


def test_bidirectional_lstm_equals_packed_sequences():
    layer, given = BidirectionalLSTM(8, 6), frames(7.0)
    whole = torch.nn.LSTM(8, 6, bidirectional=True, batch_first=True)
    state = dict(layer.ahead.state_dict())
    state |= {f"{k}_reverse": v for k, v in layer.back.state_dict().items()}
    whole.load_state_dict(state)
    packed = torch.nn.utils.rnn.pack_padded_sequence(given.hidden, given.lengths, batch_first=True)
    expected = torch.nn.utils.rnn.pad_packed_sequence(whole(packed)[0], batch_first=True)[0]
    found = layer(given.hidden, given.lengths)
    for row, size in enumerate((9, 5)):
        torch.testing.assert_close(found[row, :size], expected[row, :size])


class TestSearch:
    @pytest.mark.parametrize("seed", range(8))
    def test_beams_find_the_most_probable_sequence(self, seed):
        """Against the sum over every path of 6 frames and 4 tokens."""
        torch.manual_seed(seed)
        log_probs = (2 * torch.randn(6, 4)).log_softmax(-1)
        chance = defaultdict(float)
        for path in itertools.product(range(4), repeat=6):
            tokens = tuple(t for t, _ in itertools.groupby(path) if t)
            chance[tokens] += math.exp(sum(float(log_probs[i, t]) for i, t in enumerate(path)))
        best = list(max(chance, key=chance.get))
        assert prefix_beam(log_probs, 200, floor=-99.0) == best

    def test_flashlight_reads_blanks_and_repetitions_as_ctc_does(self):
        pytest.importorskip("flashlight.lib.text.decoder")
        path = torch.tensor([2, 2, 0, 2, 1, 3, 3, 0])
        log_probs = (9.0 * F.one_hot(path, 4)).log_softmax(-1)
        assert FlashlightSearch(" ab", None, 1.0, 50)(log_probs) == [2, 2, 1, 3]

    def test_greedy_takes_out_repetitions_and_blanks(self):
        path = torch.tensor([1, 1, 0, 1, 2, 2, 0])
        assert greedy(F.one_hot(path, 3).float()) == [1, 1, 2]

    def test_a_head_searches_as_it_is_told(self):
        heads = [CTC(8, num_tokens=6, search=s).eval() for s in ("greedy", "beam")]
        heads[1].load_state_dict(heads[0].state_dict())
        given = frames()
        log_probs, lengths = heads[1].log_probs(given)
        expected = [prefix_beam(r[:n]) for r, n in zip(log_probs, lengths.tolist(), strict=True)]
        assert heads[1].predict(given) == expected

    def test_a_missing_language_model_is_named(self):
        pytest.importorskip("flashlight.lib.text.decoder")
        with pytest.raises(RecipeError, match=r"cannot read KenLM file nowhere\.arpa"):
            CTC(8, num_tokens=3, search="flashlight", language_model="nowhere.arpa", symbols="ab")
        with pytest.raises(RecipeError, match="search 'greedy' reads no language_model"):
            CTC(8, num_tokens=3, language_model="nowhere.arpa")


def test_am_softmax_lowers_the_true_cosine_by_the_margin():
    head, given = Speaker(8, num_classes=3, scale=30.0, margin=0.2).eval(), frames()
    vectors = F.normalize(head.embedding(given), dim=-1)
    cosine = (vectors @ F.normalize(head.speakers, dim=-1).T).tolist()
    expected = 0.0
    for row, true in enumerate((0, 2)):
        logits = [30 * (c - 0.2 * (k == true)) for k, c in enumerate(cosine[row])]
        expected += math.log(sum(math.exp(z) for z in logits)) - logits[true]
    loss = head.loss(given, targets("speaker"))
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-4)


def test_classifier_reads_the_mean_of_valid_frames():
    head, given = Classifier(8, num_classes=3).eval(), frames(1e4)
    expected = head.linear(torch.stack([given.hidden[0].mean(0), given.hidden[1, :5].mean(0)]))
    torch.testing.assert_close(head.logits(given), expected)


@pytest.mark.parametrize("kind", [Classifier, Speaker])
def test_standardised_pooling_learns_statistics_and_keeps_them(kind):
    head = kind(8, num_classes=3, standardize=True).train()
    random = torch.Generator().manual_seed(0)
    name = "classifier" if kind is Classifier else "speaker"
    for _ in range(200):
        hidden = 5 + 3 * torch.randn(2, 9, 8, generator=random)
        head.loss(Frames(hidden, torch.tensor([9, 5]), 50.0), targets(name)).total.backward()
    mean = head.norm.running_mean[:8]
    torch.testing.assert_close(mean, torch.full((8,), 5.0), atol=0.8, rtol=0)
    one = Frames(torch.randn(1, 4, 8), torch.tensor([4]), 50.0)
    label = Tokens(torch.tensor([[1]]), torch.tensor([1]))
    before = head.norm.running_mean.clone()
    assert torch.isfinite(head.loss(one, label).total)  # a batch of one has no variance
    assert torch.equal(head.norm.running_mean, before)
    other = kind(8, num_classes=3, standardize=True).eval()
    other.load_state_dict(head.state_dict())
    for a, b in zip(flat(other.predict(one)), flat(head.eval().predict(one)), strict=True):
        torch.testing.assert_close(a, b)
