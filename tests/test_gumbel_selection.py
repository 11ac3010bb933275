import torch
from torch.nn import functional as F

from speechfuse.interfaces.gumbel_selection import GumbelSelection


def test_evaluation_takes_each_feature_from_its_best_layer(stack):
    given = stack(layers=3, dim=4)
    part = GumbelSelection(given.spec, tasks=["asr"]).eval()
    chosen = [2, 0, 0, 1]
    part.logits.data = 5.0 * F.one_hot(torch.tensor(chosen), 3).T
    by_hand = torch.stack([given.layers[layer][..., d] for d, layer in enumerate(chosen)], -1)
    assert torch.equal(part(given, "asr").hidden, by_hand)
    assert part.layer_weights(given, "asr")[""].tolist() == [0.5, 0.25, 0.25]


def test_training_is_the_straight_through_gumbel_softmax_of_torch(stack):
    given = stack(garbage=0.0)
    for soft in (False, True):
        part = GumbelSelection(given.spec, tasks=["asr"], temperature=0.7, soft=soft)
        part.logits.data = torch.randn(5, 24)
        torch.manual_seed(1)
        hidden = part(given, "asr").hidden
        logits = part.logits.detach().requires_grad_()
        torch.manual_seed(1)
        weights = F.gumbel_softmax(logits, tau=0.7, hard=not soft, dim=0)
        expected = (weights[:, None, None] * given.stacked()).sum(0)
        torch.testing.assert_close(hidden, expected)
        for out in (hidden, expected):
            out.square().sum().backward()
        torch.testing.assert_close(part.logits.grad, logits.grad)


def test_training_draws_layers_as_often_as_their_softmax_says(stack):
    torch.manual_seed(0)
    given = stack(layers=3, dim=4000, lengths=(1,))
    part = GumbelSelection(given.spec, tasks=["asr"])
    part.logits.data[:] = torch.tensor([0.1, 0.3, 0.6]).log()[:, None]
    hidden = part(given, "asr").hidden
    shares = torch.stack([(hidden == layer).float().mean() for layer in given.layers])
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.3, 0.6]), atol=0.03, rtol=0)


def test_temperature_falls_with_the_batches_of_training(stack):
    given = stack()
    part = GumbelSelection(
        given.spec, tasks=["asr"], temperature=4.0, final_temperature=1.0, anneal_steps=2
    )
    found = []
    for _ in range(4):
        found.append(part.current_temperature().item())
        part.eval()(given, "asr")
        part.train()(given, "asr")
    assert found == [4.0, 2.0, 1.0, 1.0]
    fresh = GumbelSelection(given.spec, tasks=["asr"], temperature=4.0, final_temperature=1.0)
    fresh.load_state_dict(part.state_dict())
    assert fresh.steps == 4
