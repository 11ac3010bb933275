"""The contract of interfaces, merges and fusions, over every part of the catalog."""

import pytest
import torch
from torch import nn

from speechfuse import catalog
from speechfuse.alignment import aligned_specs
from speechfuse.contracts import Fitted, ShowsLayers
from speechfuse.errors import ShapeError
from speechfuse.fusion import LayersFirst, MergeFirst, fit_interfaces
from speechfuse.interfaces.single_layer import SingleLayer
from speechfuse.interfaces.weighted_sum import WeightedSum
from speechfuse.ops import masked_mean
from speechfuse.types import Frames, LayerStack, StackSpec

TASKS = ["asr", "emotion"]
SHAPES = [(1, 8), (2, 24), (5, 24), (13, 32)]


def made(name, layers, dim):
    torch.manual_seed(0)
    part = catalog.INTERFACES[name](StackSpec(layers, dim, 50.0), tasks=TASKS)
    for parameter in part.parameters():  # away from a start at zero, where much is equal
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    if isinstance(part, Fitted):
        hidden = torch.randn(layers, 2, 50, dim)
        part.fit([LayerStack(tuple(hidden), torch.tensor([50, 31]), 50.0)])
    return part.eval()


def fusions(stacks, interface="hconv", **options):
    """Both orders with every merge that takes these stacks."""
    torch.manual_seed(0)
    cls = catalog.INTERFACES[interface]
    specs = aligned_specs([s.spec for s in stacks])
    for merge_class in catalog.MERGES.values():
        parts = [cls(s.spec, tasks=["asr"]) for s in stacks]
        left = [StackSpec(1, p.out_dim, s.frame_rate) for p, s in zip(parts, specs, strict=True)]
        for given, order in ((specs, "merge_first"), (left, "layers_first")):
            try:
                merge = merge_class(given)
            except ShapeError:
                continue
            if order == "merge_first":
                made = MergeFirst(merge, cls(merge.spec, tasks=["asr"]), **options)
            else:
                made = LayersFirst(parts, merge, **options)
            fit_interfaces(made, lambda: [stacks])
            yield made


def mixed_tasks(part, given):
    """Parameters in which some elements have a gradient from one task alone.

    Adam's momentum would move those in the other task's steps: it skips whole tensors only.
    """
    reached = {}
    for task in TASKS:
        part.zero_grad(set_to_none=True)
        torch.manual_seed(0)  # what is drawn is drawn alike for both
        out = part(given, task).hidden
        (out * torch.randn_like(out)).sum().backward()
        reached[task] = {n: p.grad != 0 for n, p in part.named_parameters() if p.grad is not None}
    one, other = reached.values()
    return [name for name in one.keys() & other if not torch.equal(one[name], other[name])]


class RowForEachTask(WeightedSum):
    """What no interface may do."""

    def __init__(self, spec, *, tasks):
        super().__init__(spec, tasks=tasks)
        self.tasks, self.logits = tasks, nn.Parameter(torch.zeros(len(tasks), spec.num_layers))

    def forward(self, stack, task):
        weights = self.logits[self.tasks.index(task)].softmax(-1)
        hidden = (weights[:, None, None, None] * stack.stacked()).sum(0)
        return Frames(hidden, stack.lengths, stack.frame_rate)


def test_a_row_for_each_task_would_be_found(stack):
    part = RowForEachTask(StackSpec(5, 24, 50.0), tasks=TASKS)
    assert mixed_tasks(part, stack(garbage=0.0)) == ["logits"]


@pytest.mark.parametrize("name", catalog.INTERFACES)
@pytest.mark.parametrize(("layers", "dim"), SHAPES)
class TestInterface:
    def test_gives_the_shape_it_states(self, name, layers, dim, stack):
        part = made(name, layers, dim)
        out = part(stack(layers=layers, dim=dim), "asr")
        lengths = [1, 1] if part.pools else [7, 4]
        assert out.hidden.shape == (2, lengths[0], part.out_dim)
        assert out.lengths.tolist() == lengths
        assert out.frame_rate == 50.0

    def test_padding_never_reaches_a_valid_frame(self, name, layers, dim, stack):
        part = made(name, layers, dim)
        one = part(stack(layers=layers, dim=dim, garbage=1e4), "asr").hidden
        other = part(stack(layers=layers, dim=dim, garbage=-7.0), "asr").hidden
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1, :4], other[1, :4])

    def test_alone_equals_in_a_batch(self, name, layers, dim, stack):
        part, given = made(name, layers, dim), stack(layers=layers, dim=dim)
        alone = LayerStack(tuple(h[1:, :4] for h in given.layers), given.lengths[1:], 50.0)
        torch.testing.assert_close(
            part(alone, "asr").hidden[0], part(given, "asr").hidden[1, :4], atol=1e-5, rtol=1e-5
        )

    def test_every_parameter_gets_a_gradient(self, name, layers, dim, stack):
        part = made(name, layers, dim).train()
        if not list(part.parameters()):
            pytest.skip("nothing is trained")
        for task in ("asr", "emotion"):  # some parameters are of one task alone
            out = part(stack(layers=layers, dim=dim), task).hidden
            (out * torch.randn_like(out)).sum().backward()
        for label, parameter in part.named_parameters():
            assert parameter.grad is not None, label
            assert layers == 1 or parameter.grad.abs().sum() > 0, label

    def test_an_absent_task_can_rest(self, name, layers, dim, stack):
        """What belongs to one task is a parameter of its own."""
        if layers == 1:
            pytest.skip("the gradient of a softmax over one layer is rounding")
        part = made(name, layers, dim).train()
        if list(part.parameters()):
            assert mixed_tasks(part, stack(layers=layers, dim=dim, garbage=0.0)) == []

    def test_gradients_to_the_layers_are_right(self, name, layers, dim, stack):
        part, given = made(name, layers, min(dim, 8)).double(), stack(layers, (3, 2), min(dim, 8))
        inputs = [layer.double().clamp(-3, 3).requires_grad_() for layer in given.layers]

        def run(*hidden):
            return part(LayerStack(hidden, given.lengths, 50.0), "asr").hidden

        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)

    def test_save_and_load_give_the_same_output(self, name, layers, dim, stack):
        part, given = made(name, layers, dim), stack(layers=layers, dim=dim)
        cls = catalog.INTERFACES[name]
        fresh = cls(StackSpec(layers, dim, 50.0), tasks=TASKS).eval()
        fresh.load_state_dict(part.state_dict())
        assert torch.equal(part(given, "asr").hidden, fresh(given, "asr").hidden)

    def test_weights_sum_to_one_over_layers(self, name, layers, dim, stack):
        part, given = made(name, layers, dim), stack(layers=layers, dim=dim)
        shown = part.layer_weights(given, "asr") if isinstance(part, ShowsLayers) else {}
        for weights in shown.values():
            assert len(weights) == layers
        for weights in (*shown.values(), *part.learned_weights().values()):
            assert (weights >= 0).all()
            torch.testing.assert_close(weights.sum(0), torch.ones_like(weights.sum(0)))

    def test_the_input_is_not_changed(self, name, layers, dim, stack):
        part, given = made(name, layers, dim), stack(layers=layers, dim=dim)
        before = [layer.clone() for layer in given.layers]
        part(given, "asr")
        assert all(torch.equal(a, b) for a, b in zip(before, given.layers, strict=True))


@pytest.mark.parametrize("name", catalog.INTERFACES)
@pytest.mark.parametrize("training", [False, True])
def test_a_linear_one_makes_of_a_mean_the_mean_of_what_it_makes(name, training, stack):
    """And of what is not, or may not be, said to be linear it is not true; one is fitted first."""
    part, given = made(name, 5, 24).train(training), stack(garbage=0.0)
    mean = tuple(masked_mean(layer, given.lengths)[:, None] for layer in given.layers)
    found = []
    for one in (given, LayerStack(mean, torch.tensor([1, 1]), 50.0)):
        torch.manual_seed(3)
        frames = part(one, "asr")
        found.append(masked_mean(frames.hidden, frames.lengths))
    equal = torch.allclose(*found, atol=1e-5, rtol=1e-4)
    assert equal == (part.linear or isinstance(part, Fitted))


def test_weighted_sum_is_that_of_superb(stack):
    """s3prl's Featurizer: softmax of weights that start at zero, times the stacked layers."""
    part, given = WeightedSum(StackSpec(5, 24, 50.0), tasks=["asr"]), stack(garbage=0.0)
    torch.testing.assert_close(part(given, "asr").hidden, given.stacked().mean(0))
    part.logits.data = torch.randn(5)
    weights = part.logits.softmax(-1)
    expected = (weights[:, None, None, None] * given.stacked()).sum(0)
    torch.testing.assert_close(part(given, "asr").hidden, expected)


def test_single_layer_is_the_chosen_one(stack):
    given = stack()
    for layer in (0, 4, -1, -5):
        part = SingleLayer(StackSpec(5, 24, 50.0), tasks=["asr"], layer=layer)
        assert torch.equal(part(given, "asr").hidden, given.layers[layer])
    with pytest.raises(ShapeError, match="the stack has 5"):
        SingleLayer(StackSpec(5, 24, 50.0), tasks=["asr"], layer=5)


@pytest.mark.parametrize("interface", catalog.INTERFACES)
@pytest.mark.parametrize("dims", [(24,), (24, 24), (24, 16), (8, 24, 16)])
def test_fusions_keep_the_contract(interface, dims, stack):
    """Models of other depth, rate and width; what is asserted below, for every merge and order."""
    sizes = [(5, (14, 8), 50.0), (3, (11, 6), 40.0), (7, (27, 15), 100.0)]

    def stacks(garbage):
        return [
            stack(layers, lengths, dim, rate, seed, garbage)
            for seed, (dim, (layers, lengths, rate)) in enumerate(zip(dims, sizes, strict=False))
        ]

    others = list(fusions(stacks(0.0), interface))
    for fusion, fresh in zip(fusions(stacks(0.0), interface), others, strict=True):
        fusion.eval()
        one, other = (fusion(stacks(garbage), "asr") for garbage in (1e4, -7.0))
        assert one.hidden.shape[-1] == fusion.out_dim
        assert one.frame_rate == fusion.frame_rate
        for row, size in enumerate(one.lengths.tolist()):
            assert torch.equal(one.hidden[row, :size], other.hidden[row, :size])
        alone = [
            LayerStack(tuple(h[1:, : s.lengths[1]] for h in s.layers), s.lengths[1:], s.frame_rate)
            for s in stacks(0.0)
        ]
        size = int(one.lengths[1])
        torch.testing.assert_close(
            fusion(alone, "asr").hidden[0, :size], one.hidden[1, :size], atol=1e-5, rtol=1e-5
        )
        for tensor in fresh.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape))
        fresh.load_state_dict(fusion.state_dict())
        assert torch.equal(fresh.eval()(stacks(1e4), "asr").hidden, one.hidden)
        if not list(fusion.parameters()):
            continue
        for parameter in fusion.parameters():  # away from a start at zero
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        fusion.train()(stacks(0.0), "asr").hidden.square().sum().backward()
        for label, parameter in fusion.named_parameters():
            assert parameter.grad is not None, label
            assert parameter.grad.abs().sum() > 0, label


def test_add_is_the_sum_and_concat_lies_side_by_side(stack):
    one, other, third = (stack(seed=s, garbage=0.0) for s in range(3))
    specs = [s.spec for s in (one, other, third)]
    added = catalog.MERGES["add"](specs)([one, other, third])
    torch.testing.assert_close(added.layers[2], one.layers[2] + other.layers[2] + third.layers[2])
    merge = catalog.MERGES["concat"](specs)
    joined = merge([one, other, third])
    assert joined.spec == merge.spec == StackSpec(5, 72, 50.0)
    torch.testing.assert_close(joined.layers[1][..., 24:48], other.layers[1])


def test_add_refuses_unequal_widths_and_says_what_to_do():
    specs = [StackSpec(5, 24, 50.0), StackSpec(5, 32, 50.0)]
    with pytest.raises(ShapeError, match=r"\[24, 32\]; use merge kind 'concat'"):
        catalog.MERGES["add"](specs)


def test_one_model_is_fused_as_it_is(stack):
    """A merge of one model does nothing, and no projection is added."""
    given = stack()
    for fusion in fusions([given], "weighted_sum"):
        assert not any(isinstance(m, nn.Linear) for m in fusion.modules())
        expected = WeightedSum(given.spec, tasks=["asr"])(given, "asr").hidden
        torch.testing.assert_close(fusion([given], "asr").hidden, expected)


def test_normalisation_comes_before_the_merge(stack):
    """A model that is 100 times as large counts as much as the other."""
    small, large = stack(seed=0, garbage=0.0), stack(seed=1, garbage=0.0)
    scaled = LayerStack(tuple(100 * h for h in large.layers), large.lengths, 50.0)
    for fusion in fusions([small, large], "weighted_sum", normalize="layer_norm"):
        torch.testing.assert_close(
            fusion([small, scaled], "asr").hidden[0],
            fusion([small, large], "asr").hidden[0],
            atol=1e-3,
            rtol=1e-3,
        )
