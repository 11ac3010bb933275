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
from speechfuse.heads.conv_transformer import ConvTransformer
from speechfuse.heads.ctc import CTC, BidirectionalLSTM
from speechfuse.heads.ctc_head import frames_needed
from speechfuse.heads.ctc_search import FlashlightSearch, greedy, prefix_beam
from speechfuse.heads.slots import Slots
from speechfuse.heads.speaker import Speaker
from speechfuse.heads.x_vector import XVector
from speechfuse.ops import masked_mean
from speechfuse.types import Frames, Tokens

SIZES = {"num_tokens": 6, "num_classes": 3, "slot_sizes": (3, 4)}
ROWS = {"conv_transformer": (33, 17), "x_vector": (23, 19)}  # what convolutions shorten
# Every head as it is by default, and options that compute something else.
HEADS = [(name, {}) for name in catalog.HEADS] + [
    ("ctc", {"join": 2, "lstm_layers": 0}),
    ("ctc", {"search": "beam", "normalize": "none"}),
    ("ctc", {"activation": "none", "lstm_layers": 2}),
    ("conv_transformer", {"project": 9, "dim": 16, "blocks": 1, "ffn_dim": 8}),
    ("classifier", {"mean_std": True, "standardize": True}),
    ("classifier", {"project": 5}),
    ("classifier", {"loss_weights": (0.5, 2.0, 4.0)}),
    ("slots", {"project": 5, "mean_std": True}),
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
    if catalog.HEADS[name].predicts == "classes":
        return Tokens(torch.tensor([[0, 3], [2, 1]]), torch.tensor([2, 2]))
    return Tokens(torch.tensor([[0], [2]]), torch.tensor([1, 1]))


def rows_of(name):
    """Frames of two utterances: enough for what a head makes of them."""
    return ROWS.get(name, (9, 5))


def flat(predictions):
    return [torch.as_tensor(p, dtype=torch.float32).flatten() for p in predictions]


@pytest.mark.parametrize(("name", "options"), HEADS)
class TestHead:
    def test_padding_changes_nothing(self, name, options):
        head = made(name, **options)
        one, other = frames(1e4, rows_of(name)), frames(-3.0, rows_of(name))
        for a, b in zip(flat(head.predict(one)), flat(head.predict(other)), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(
            head.loss(one, targets(name)).total, head.loss(other, targets(name)).total
        )

    def test_alone_equals_in_a_batch(self, name, options):
        rows = rows_of(name)
        head, given, wanted = made(name, **options), frames(rows=rows), targets(name)
        alone = Frames(given.hidden[1:, : rows[1]], given.lengths[1:], 50.0)
        one, many = flat(head.predict(alone))[0], flat(head.predict(given))[1]
        torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-5)
        parts = []
        for row, size in enumerate(rows):
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
        head.loss(frames(rows=rows_of(name)), targets(name)).total.backward()
        for label, parameter in head.named_parameters():
            assert parameter.grad is not None, label
            assert parameter.grad.abs().sum() > 0, label

    def test_save_and_load_give_the_same_predictions(self, name, options):
        head, fresh = made(name, **options), made(name, **options)
        for tensor in fresh.state_dict().values():
            torch.nn.init.uniform_(tensor) if tensor.is_floating_point() else tensor.zero_()
        fresh.load_state_dict(head.state_dict())
        given = frames(rows=rows_of(name))
        for a, b in zip(flat(head.predict(given)), flat(fresh.predict(given)), strict=True):
            assert torch.equal(a, b)

    def test_an_utterance_of_one_frame_is_read(self, name, options):
        head, given = made(name, **options), frames(rows=(40, 1))
        alone = Frames(given.hidden[1:, :1], given.lengths[1:], 50.0)
        one, many = flat(head.predict(alone))[0], flat(head.predict(given))[1]
        torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-5)
        assert torch.isfinite(one).all()
        assert torch.isfinite(head.loss(given, targets(name)).total)


@pytest.mark.parametrize(("name", "options"), HEADS)
def test_the_mean_over_frames_is_all_to_a_head_that_says_so_and_to_no_other(name, options):
    head, given = made(name, **options), frames(rows=rows_of(name))
    mean = Frames(masked_mean(given.hidden, given.lengths)[:, None], torch.tensor([1, 1]), 50.0)
    whole, part = (
        [head.loss(one, targets(name)).total, *flat(head.predict(one))] for one in (given, mean)
    )
    pairs = zip(whole, part, strict=True)
    same = all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in pairs)
    own = {k: v for k, v in options.items() if k not in catalog.FILLED_IN}
    every = catalog.checked_options("head", name, own)
    assert same == catalog.HEADS[name].reads_mean(every)


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


def test_a_weighted_loss_is_a_mean_by_the_weights_of_the_true_classes():
    plain, given = Classifier(8, num_classes=3).eval(), frames()
    weighted = Classifier(8, num_classes=3, loss_weights=[0.5, 2.0, 4.0]).eval()
    weighted.load_state_dict(plain.state_dict())
    rows = plain.logits(given).double().log_softmax(-1)
    found = weighted.loss(given, targets("classifier"))  # classes 0 and 2
    assert found.count == 4.5
    by_hand = -0.5 * rows[0, 0] - 4 * rows[1, 2]
    torch.testing.assert_close(found.total.double(), by_hand, rtol=1e-5, atol=0)


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


class TestConvTransformer:
    def test_frames_are_those_of_the_convolutions(self):
        head = ConvTransformer(8, num_tokens=4, dim=16, blocks=1).eval()
        for size in (7, 8, 9, 10, 33):
            log_probs, lengths = head.log_probs(frames(rows=(size,)))
            assert lengths.tolist() == [log_probs.shape[1]] == [(size - 1) // 2 - 2]
        assert head.lengths(torch.tensor([1, 6])).tolist() == [0, 0]

    def test_nothing_is_learned_from_an_utterance_too_short(self):
        head, wanted = made("conv_transformer"), targets("conv_transformer")
        loss = head.loss(frames(rows=(33, 5)), wanted)
        assert loss.count == 3
        assert head.predict(frames(rows=(33, 5)))[1] == []
        loss.total.backward()
        assert all(torch.isfinite(p.grad).all() for p in head.parameters())

    @pytest.mark.parametrize("blocks", [2, 65])
    def test_parameters_are_those_of_the_benchmark(self, blocks):
        """65 blocks of width 256 are the 51.3 M of the multilingual track."""
        head = ConvTransformer(768, num_tokens=30, blocks=blocks)
        attention = 4 * (256 * 256 + 256)
        feed_forward = 256 * 1024 + 1024 + 1024 * 256 + 256
        block = attention + feed_forward + 2 * 2 * 256
        assert round(65 * block / 1e6, 1) == 51.3
        expected = 768 * 80 + 80  # to 80 features
        expected += 9 * 256 + 256 + 9 * 256 * 256 + 256  # two convolutions
        expected += 37 * 256 * 256 + 256  # 80 -> 39 -> 37 features, of 256 channels
        expected += blocks * block + 2 * 256 + 256 * 30 + 30
        assert sum(p.numel() for p in head.parameters()) == expected

    def test_convolutions_equal_sums_over_windows(self):
        """Blocks read what two sliding windows of three frames and three features give."""
        torch.manual_seed(1)
        head = ConvTransformer(
            8, num_tokens=4, project=7, dim=4, blocks=0, attention_heads=2
        ).eval()
        given = frames(rows=(11,))
        image = head.project(given.hidden)[0]
        first = torch.zeros(5, 3, 4)
        for t, f, c in itertools.product(range(5), range(3), range(4)):
            window = image[2 * t : 2 * t + 3, 2 * f : 2 * f + 3]
            first[t, f, c] = (window * head.conv1.weight[c, 0]).sum() + head.conv1.bias[c]
        first = first.relu()
        second = torch.zeros(3, 4)
        for t, c in itertools.product(range(3), range(4)):
            window = first[t : t + 3].permute(2, 0, 1)
            second[t, c] = (window * head.conv2.weight[c]).sum() + head.conv2.bias[c]
        hidden = head.embed(second.relu()) * 2.0
        for t in range(3):
            place = [math.sin(t), math.cos(t), math.sin(t / 100), math.cos(t / 100)]
            hidden[t] += torch.tensor(place)
        expected = head.linear(head.norm(hidden)).log_softmax(-1)
        torch.testing.assert_close(head.log_probs(given)[0][0], expected)


class TestXVector:
    def test_layers_read_the_frames_that_their_contexts_name(self):
        """Frame by frame, by affine maps of the frames side by side, as s3prl writes it."""
        head = made("x_vector", dim=6, pooled_dim=10)
        given = frames(1e4, rows=(23, 19))
        hidden = head.project(given.hidden[1, :19])
        for layer, (context, every) in zip(
            head.layers, [(5, 1), (3, 2), (3, 3), (1, 1), (1, 1)], strict=True
        ):
            kernel = layer.weight.transpose(1, 2).flatten(1)
            rows = [
                torch.cat([hidden[t + every * k] for k in range(context)])
                for t in range(len(hidden) - every * (context - 1))
            ]
            hidden = (torch.stack(rows) @ kernel.T + layer.bias).relu()
        assert len(hidden) == 19 - 14
        deviation = (hidden.var(0, correction=0) + 1e-5).sqrt()
        expected = head.embed(torch.cat([hidden.mean(0), deviation])).relu()
        torch.testing.assert_close(head.embedding(given)[1], expected)

    def test_parameters_are_those_of_superb(self):
        head = XVector(768, num_classes=1211)
        expected = 768 * 512 + 512
        expected += 5 * 512 * 512 + 512 + 2 * (3 * 512 * 512 + 512) + 512 * 512 + 512
        expected += 512 * 1500 + 1500 + 3000 * 512 + 512 + 512 * 512 + 512 + 1211 * 512
        assert sum(p.numel() for p in head.parameters()) == expected


def test_slots_are_as_many_classifiers_with_one_pooling():
    head, given, wanted = made("slots"), frames(), targets("slots")
    logits = head.logits(given)
    expected = F.cross_entropy(logits[:, :3], wanted.ids[:, 0], reduction="sum")
    expected += F.cross_entropy(logits[:, 3:], wanted.ids[:, 1], reduction="sum")
    loss = head.loss(given, wanted)
    torch.testing.assert_close(loss.total, expected)
    assert loss.count == 2
    found = torch.tensor(head.predict(given))
    assert torch.equal(found[:, 0], logits[:, :3].argmax(-1))
    assert torch.equal(found[:, 1], logits[:, 3:].argmax(-1))
    assert isinstance(head, Slots)


def test_the_heads_of_superb_have_its_parameters():
    """Recognition: Linear, two layers of LSTM both ways, Linear; emotion and intent: two Linear."""
    ctc = CTC(768, num_tokens=32, project=1024, lstm_layers=2, lstm_dim=1024, activation="none")
    lstm = [2 * 4 * 1024 * (width + 1024 + 2) for width in (1024, 2048)]
    expected = 768 * 1024 + 1024 + sum(lstm) + 2048 * 32 + 32
    assert sum(p.numel() for p in ctc.parameters()) == expected
    classifier = Classifier(768, num_classes=4, project=256)
    assert sum(p.numel() for p in classifier.parameters()) == 768 * 256 + 256 + 256 * 4 + 4


def test_a_projection_without_activation_is_linear():
    head = CTC(8, num_tokens=4, activation="none", lstm_layers=0, dropout=0.5, normalize="none")
    given = frames(rows=(6,))
    expected = head.linear(head.project(given.hidden)).log_softmax(-1)
    torch.testing.assert_close(head.train().log_probs(given)[0], expected)
