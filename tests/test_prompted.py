"""HarmoniFuse's parts together: prompt, alpha, generation, padding, and what may not move."""

import pytest
import torch

from speechfuse.context.packing import pack
from speechfuse.context.prompted_transformer import PromptedTransformer
from speechfuse.context.reading import PromptedFusion
from speechfuse.decoding import generate
from speechfuse.errors import RecipeError
from speechfuse.heads.text import Text
from speechfuse.interfaces.gated_encoder import GatedEncoder
from speechfuse.interfaces.prompt_adaptive import PromptAdaptiveFusion
from speechfuse.interfaces.single_layer import SingleLayer
from speechfuse.types import Frames, LayerStack, StackSpec, Tokens

TOKENS, WIDTH, LIMIT = 9, 12, 10


def reader(normalize="layer_norm", fusion=None, *, stir=0.3, prompts=(), **options):
    """A context of two tasks with all parameters stirred, and the fusion of its layers."""
    torch.manual_seed(1)
    context = PromptedTransformer(
        WIDTH,
        50.0,
        tasks=["asr", "emotion"],
        text_sizes={"asr": TOKENS},
        prompts={"asr": prompts, "emotion": prompts},
        **{"layers": 3, "dim": 32, "heads": 2, "join": 2} | options,
    )
    interface = PromptAdaptiveFusion(context.spec, tasks=["asr", "emotion"], **(fusion or {}))
    made = PromptedFusion(context, interface, normalize=normalize).eval()
    for parameter in made.parameters():
        parameter.data.add_(stir * torch.randn_like(parameter))
    return made


def writer(beam_size=1):
    torch.manual_seed(2)
    return Text(32, num_tokens=TOKENS, max_tokens=LIMIT, beam_size=beam_size)


def frames(lengths=(15, 6, 11), garbage=0.0):
    hidden = torch.randn(
        len(lengths), max(lengths), WIDTH, generator=torch.Generator().manual_seed(3)
    )
    for row, size in enumerate(lengths):
        hidden[row, size:] = garbage
    return Frames(hidden, torch.tensor(lengths), 50.0)


def texts(*rows):
    sizes = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), max(sizes), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    return Tokens(ids, sizes)


def alone(given, row):
    size = int(given.lengths[row])
    return Frames(given.hidden[row : row + 1, :size], given.lengths[row : row + 1], 50.0)


FUSIONS = [{}, {"scores": "static"}, {"scores": "dynamic"}, {"per": "utterance"}]
WRITERS = [{}, {"blocks": "qwen2"}, {"causal": True}]


def test_parts_are_packed_without_gaps_on_either_side():
    """Against rows joined by hand."""
    parts = [
        (torch.arange(1.0, 7).reshape(2, 3, 1), torch.tensor([3, 1])),
        (torch.tensor([[[10.0]], [[20.0]]]), torch.tensor([1, 1])),
        (torch.tensor([[[30.0], [0]], [[40.0], [41]]]), torch.tensor([1, 2])),
    ]
    right, left = pack(parts), pack(parts, left=True)
    assert right.hidden[..., 0].tolist() == [[1, 2, 3, 10, 30], [4, 20, 40, 41, 0]]
    assert left.hidden[..., 0].tolist() == [[1, 2, 3, 10, 30], [0, 4, 20, 40, 41]]
    assert right.prefix.tolist() == [[True] * 4 + [False], [True] * 2 + [False] * 3]
    assert left.prefix.tolist() == [[True] * 4 + [False], [False, True, True, False, False]]
    assert left.valid.tolist() == [[True] * 5, [False] + [True] * 4]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("options", WRITERS)
@pytest.mark.parametrize("beam_size", [1, 4])
def test_cached_generation_equals_uncached_and_each_utterance_alone(fusion, options, beam_size):
    made, head, given = reader(fusion=fusion, **options), writer(beam_size), frames()
    found = generate(made, head, given, "asr")
    assert found == generate(made, head, given, "asr", use_cache=False)
    assert found == [generate(made, head, alone(given, row), "asr")[0] for row in range(3)]
    assert len({tuple(one.ids) for one in found}) > 1


@pytest.mark.parametrize("beam_size", [1, 4])
def test_without_a_cache_everything_is_read_again(monkeypatch, beam_size):
    """With one, a single position of every text after the first."""
    made, head, read = reader(), writer(beam_size), []
    run = PromptedTransformer.run

    def counted(self, hidden, *rest, **options):
        read.append(hidden.shape[1])
        return run(self, hidden, *rest, **options)

    monkeypatch.setattr(PromptedTransformer, "run", counted)
    generate(made, head, frames(), "asr", use_cache=False)
    assert len(read) > 1
    assert read == [9 + step for step in range(len(read))]
    steps = len(read)
    read.clear()
    generate(made, head, frames(), "asr")
    assert read == [9] + [1] * (steps - 1)


def test_greedy_generation_is_what_the_loss_was_trained_on():
    """Each token written is the most likely one of a single pass over the whole text."""
    made, head, given = reader(), writer(), frames()
    for row, one in enumerate(generate(made, head, given, "asr")):
        ids = [*one.ids] if one.cut else [*one.ids, 0]
        (read,) = made(alone(given, row), "asr", ["text"], text=texts(ids))
        assert head.logits(read.hidden)[0, : len(ids)].argmax(-1).tolist() == ids


def test_generation_ends_and_says_when_it_was_cut():
    made, head = reader(), writer()
    with torch.no_grad():
        head.linear.bias[0] = -1e4
    assert all(one.cut and len(one.ids) == LIMIT for one in generate(made, head, frames(), "asr"))
    with torch.no_grad():
        head.linear.bias[0] = 1e4
    assert all(not one.cut and not one.ids for one in generate(made, head, frames(), "asr"))


def test_the_prompt_changes_alpha_and_what_is_read():
    """With one shared scalar, so that only the prompt can."""
    made = reader(fusion={"scalar": "shared"})
    read = {task: made(frames(), task, ["prompt"])[0].hidden for task in ("asr", "emotion")}
    assert (read["asr"] - read["emotion"]).abs().max() > 1e-2
    for where in ("prompt", "speech"):
        alphas = []
        for task in ("asr", "emotion"):
            stack = made.normalised(made.context(frames(), task).at(where))
            alphas.append(made.interface.layer_weights(stack, task)[""])
        assert (alphas[0] - alphas[1]).abs().max() > 1e-3


def test_a_causal_prefix_hides_the_prompt_from_speech():
    made = reader(fusion={"scalar": "shared"}, causal=True)
    read = [made(frames(), task, ["speech"])[0].hidden[0] for task in ("asr", "emotion")]
    torch.testing.assert_close(read[0], read[1])


def test_zero_feed_forward_is_the_static_mix_and_one_hot_is_that_layer():
    both, static = reader(), reader(fusion={"scores": "static"})
    both.interface.ffn[-1].weight.data.zero_()
    for name, logits in both.interface.logits.items():
        static.interface.logits[name].data.copy_(logits.data)
    stack = LayerStack(tuple(torch.randn(3, 2, 7, 32)), torch.tensor([7, 4]), 25.0)
    assert torch.allclose(
        both.interface(stack, "asr").hidden, static.interface(stack, "asr").hidden, atol=1e-6
    )
    static.interface.logits["asr"].data = torch.tensor([0.0, 1e4, 0.0])
    assert torch.equal(static.interface(stack, "asr").hidden, stack.layers[1])


@pytest.mark.parametrize("scores", ["both", "static", "dynamic"])
@pytest.mark.parametrize("weights", ["softmax", "sigmoid", "none"])
def test_fusion_starts_as_the_plain_mean(scores, weights):
    spec = StackSpec(4, 8, 50.0)
    fusion = PromptAdaptiveFusion(spec, tasks=["asr"], scores=scores, weights=weights)
    stack = LayerStack(tuple(torch.randn(4, 2, 5, 8)), torch.tensor([5, 3]), 50.0)
    torch.testing.assert_close(fusion(stack, "asr").hidden, stack.stacked().mean(0))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("options", WRITERS)
def test_later_tokens_do_not_change_what_comes_before(fusion, options):
    made, given = reader(fusion=fusion, **options), frames((9,))
    one, other = (
        made(given, "asr", ["text"], text=texts(ids))[0].hidden[0]
        for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 7, 8])
    )
    torch.testing.assert_close(one[:4], other[:4])  # predict tokens 1 to 4
    assert (one[4] - other[4]).abs().max() > 1e-3


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_batch_of_mixed_lengths_equals_singles(fusion):
    made, given = reader(fusion=fusion), frames(garbage=1e3)
    rows = [[1, 2, 3], [4], [5, 6, 7, 8]]
    places = ["speech", "prompt", "text"]
    together = made(given, "asr", places, text=texts(*rows))
    for row, ids in enumerate(rows):
        single = made(alone(given, row), "asr", places, text=texts(ids))
        for one, batch in zip(single, together, strict=True):
            size = int(one.lengths[0])
            assert size == int(batch.lengths[row])
            torch.testing.assert_close(
                one.hidden[0], batch.hidden[row, :size], atol=1e-4, rtol=1e-4
            )


def test_padding_on_either_side_gives_the_same_layers():
    made, given = reader(), frames()
    found = {}
    for left in (False, True):
        packed = made.context.packed(given, "asr", texts([1, 2], [3], [4, 5]), left=left)
        layers = made.context.run(packed.hidden, packed.valid, packed.prefix)
        found[left] = [layers[-1][row][packed.valid[row]] for row in range(3)]
    for right, left in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(right, left, atol=1e-5, rtol=1e-5)


def test_an_absent_task_does_not_move_with_adam():
    """Moments of both tasks are built up first; weight decay would move them too."""
    made, head = reader(), writer()
    classes = torch.nn.Linear(32, 4)
    optimizer = torch.optim.AdamW([*made.parameters(), *head.parameters(), *classes.parameters()])

    def step(task):
        optimizer.zero_grad(set_to_none=True)
        if task == "asr":
            target = texts([1, 2], [3], [4, 5])
            head.loss(made(frames(), "asr", ["text"], text=target)[0], target).total.backward()
        else:
            classes(made(frames(), "emotion", ["prompt"])[0].hidden).square().sum().backward()
        optimizer.step()

    for task in ["asr", "emotion"] * 3:
        step(task)
    parts = {"asr": head, "emotion": classes}
    for absent, present in (("asr", "emotion"), ("emotion", "asr")):
        named = dict(made.named_parameters())
        own = [p for name, p in named.items() if absent in name.split(".")]
        assert len(own) >= 2
        own += parts[absent].parameters()
        shared = named["context.blocks.layers.0.mlp.up_proj.weight"]
        before, then = [p.clone() for p in own], shared.clone()
        step(present)
        assert all(map(torch.equal, before, own))
        assert not torch.equal(shared, then)


def test_prompts_in_words_are_told_apart_and_unknown_ones_raise():
    made = reader(prompts=["write it down", "transcribe"])
    words = [made(frames(), "asr", ["prompt"], prompts=[w] * 3)[0] for w in ("transcribe", "feel")]
    assert (words[0].hidden - words[1].hidden).abs().max() > 1e-2
    first = made(frames(), "asr", ["prompt"])[0].hidden  # in evaluation the first one
    given = made(frames(), "asr", ["prompt"], prompts=["write it down"] * 3)[0].hidden
    assert torch.equal(first, given)
    with pytest.raises(RecipeError, match=r"no prompt for task 'asd'.*Did you mean 'asr'"):
        made(frames(), "asd", ["prompt"])
    with pytest.raises(RecipeError, match="one learned prompt, found 'hello'"):
        reader()(frames(), "asr", ["prompt"], prompts=["hello"] * 3)


def test_training_draws_any_of_the_prompts():
    made = reader(prompts=["a", "b", "c"], dropout=0.0).train()
    torch.manual_seed(0)
    read = torch.stack([made(frames(), "asr", ["prompt"])[0].hidden[0, 0] for _ in range(20)])
    assert len(read.round(decimals=4).unique(dim=0)) == 3


def test_a_pretrained_transformer_starts_as_it_is(tmp_path):
    """unit_rms and a scalar of its own for the last layer leave the last hidden state alone."""
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=7,
        hidden_size=32,
        num_hidden_layers=3,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    Qwen2Model(config).save_pretrained(tmp_path)
    context = PromptedTransformer(
        WIDTH,
        50.0,
        tasks=["asr"],
        text_sizes={"asr": TOKENS},
        prompts={"asr": []},
        pretrained=str(tmp_path),
    )
    assert context.spec == StackSpec(3, 32, 50.0 / context.join)
    fused = PromptAdaptiveFusion(context.spec, tasks=["asr"], last_layer=40.0)
    last = SingleLayer(context.spec, tasks=["asr"])
    ours = PromptedFusion(context, fused, normalize="unit_rms").eval()
    plain = PromptedFusion(context, last, normalize="none").eval()
    (one,), (other,) = (made(frames(), "asr", ["speech"]) for made in (ours, plain))
    torch.testing.assert_close(one.hidden, other.hidden, atol=2e-2, rtol=2e-2)  # eps of the norm
    with pytest.raises(RecipeError, match="no pretrained transformer at"):
        PromptedTransformer(
            WIDTH, 50.0, tasks=[], text_sizes={}, prompts={}, pretrained=str(tmp_path / "none")
        )


def test_gated_encoder_has_weights_for_each_task_or_for_all():
    spec = StackSpec(3, 8, 50.0)
    own = GatedEncoder(spec, tasks=["asr", "emotion"])
    stack = LayerStack(tuple(torch.randn(3, 1, 4, 8)), torch.tensor([4]), 50.0)
    own.logits["asr"].data = torch.tensor([0.0, 0.0, 1e4])
    assert torch.equal(own(stack, "asr").hidden, stack.layers[2])
    torch.testing.assert_close(own(stack, "emotion").hidden, stack.stacked().mean(0))
    shared = GatedEncoder(spec, tasks=["asr", "emotion"], gate="shared")
    assert [*shared.logits] == ["shared"]
