"""What runs on a GPU gives what it gives on the CPU, from encoders to finished runs."""

from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file

import speechfuse.extract
from architectures import ARCHITECTURES
from speechfuse import build, catalog, fit
from speechfuse.alignment import align
from speechfuse.audio import pad_clips
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.decoding import generate
from speechfuse.errors import RecipeError, ShapeError
from speechfuse.evaluate import evaluate_again
from speechfuse.extract import fill_stores
from speechfuse.fusion import fit_interfaces
from speechfuse.ops import at_rest, moved
from speechfuse.predict import predict_files
from speechfuse.recipe import merged
from speechfuse.taskdata import load_tasks
from speechfuse.train import train_run
from speechfuse.types import Frames, LayerStack
from speechfuse.upstreams.huggingface import HuggingFace
from test_heads import HEADS, rows_of
from test_heads import frames as head_frames
from test_heads import made as made_head
from test_heads import targets as head_targets
from test_merging import OPTIONS as MERGES
from test_merging import recipe_of
from test_prompted import FUSIONS, WRITERS, alone, reader, texts, writer
from test_prompted import frames as prompted_frames

CUDA = torch.device("cuda")
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

CLIPS = (16000, 5000, 9001, 1200)  # samples
STREAMED = ("single_layer", "weighted_sum", "gated_encoder", "hconv")


@pytest.fixture(autouse=True)
def full_float32():
    """cuDNN rounds what convolutions and LSTMs read to TF32, unless it is told."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def clips(sizes=CLIPS):
    generator = torch.Generator().manual_seed(1)
    return pad_clips([0.1 * torch.randn(size, generator=generator) for size in sizes])


def on_gpu(module):
    return deepcopy(module).to(CUDA)


def assert_close(found, expected, tolerance=1e-4):
    assert found.device.type == CUDA.type
    torch.testing.assert_close(found.cpu(), expected, atol=tolerance, rtol=tolerance)


def assert_same_gradients(found, expected):
    """By the size of each: a gradient is a sum of many terms, in another order on a GPU."""
    gradients = dict(expected.named_parameters())
    for name, parameter in found.named_parameters():
        wanted = gradients[name].grad
        assert (parameter.grad is None) == (wanted is None), name
        if wanted is not None:
            assert_close(parameter.grad, wanted, 1e-3 * max(1.0, float(wanted.abs().max())))


def encoder_of(folder, **options):
    if "whisper" in folder.name:
        options.setdefault("whisper_pad", 0.5)
    return HuggingFace(source=str(folder), **options)


class TestEncoder:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_states_are_those_of_the_cpu_in_a_batch_and_alone(self, encoder, name):
        part, wav = encoder_of(encoder(name)), clips()
        expected = part(wav)
        part.to(CUDA)
        found = part(moved(wav, CUDA))
        assert found.lengths.tolist() == expected.lengths.tolist()
        for one, other in zip(found.layers, expected.layers, strict=True):
            assert_close(one, other)
        lengths, layers = part.stream(moved(wav, CUDA))
        assert lengths.tolist() == expected.lengths.tolist()
        for one, other in zip(layers, expected.layers, strict=True):
            assert_close(one, other)
        for row, size in enumerate(CLIPS):
            single = part(moved(pad_clips([wav.samples[row, :size]]), CUDA))
            frames = int(single.lengths[0])
            for one, other in zip(single.layers, expected.layers, strict=True):
                assert_close(one[0], other[row, :frames])

    @pytest.mark.parametrize("name", ["hubert", "wavlm", "data2vec", "whisper"])
    @pytest.mark.parametrize(
        "options", [{"length_policy": "padded"}, {"layers": [1, 2]}, {"whisper_pad": "30s"}]
    )
    def test_options_change_nothing(self, encoder, name, options):
        part, wav = encoder_of(encoder(name), **options), clips()
        expected = part(wav)
        found = part.to(CUDA)(moved(wav, CUDA))
        for one, other in zip(found.layers, expected.layers, strict=True):
            assert_close(one, other)

    def test_whisper_reads_more_than_30_s(self, encoder):
        part, wav = encoder_of(encoder("whisper"), whisper_pad=1.0), clips((31 * 16000, 8000))
        expected = part(wav)
        found = part.to(CUDA)(moved(wav, CUDA))
        for one, other in zip(found.layers, expected.layers, strict=True):
            assert_close(one, other)

    def test_the_filterbank(self):
        part, wav = catalog.UPSTREAMS["filterbank"](), clips()
        assert_close(part(moved(wav, CUDA)).layers[0], part(wav).layers[0])

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_bfloat16_is_near(self, encoder, name):
        expected = encoder_of(encoder(name))(clips())
        part = encoder_of(encoder(name), compute="bfloat16")
        part.load()
        part.to(CUDA)
        found = part(moved(clips(), CUDA))
        for one, other in zip(found.layers, expected.layers, strict=True):
            ours = one.float().cpu()
            assert torch.isfinite(ours).all()
            assert (ours - other).norm() / other.norm() < 0.05


def test_aligned_stacks(stack):
    fine, coarse = stack(layers=13, garbage=0.0), stack(layers=5, lengths=(6, 3), rate=40.0)
    expected = align([fine, coarse])
    found = align(moved([fine, coarse], CUDA))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.lengths.tolist() == theirs.lengths.tolist()
        for one, other in zip(ours.layers, theirs.layers, strict=True):
            for row, size in enumerate(theirs.lengths.tolist()):
                assert_close(one[row, :size], other[row, :size])


class TestFusion:
    def fusion(self, stacks, merge, interface, order):
        """Skips what this merge or this interface refuses."""
        recipe = recipe_of(merge, interface, order=order)
        torch.manual_seed(0)
        try:
            fusion = build.build_fusion(read_recipe(recipe), [s.spec for s in stacks], ["asr"])
        except (RecipeError, ShapeError) as error:
            pytest.skip(str(error))
        for parameter in fusion.parameters():  # away from a start at zero
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        fit_interfaces(fusion, lambda: [stacks])
        return fusion.eval()

    @pytest.mark.parametrize("order", ["merge_first", "layers_first"])
    @pytest.mark.parametrize("interface", catalog.INTERFACES)
    @pytest.mark.parametrize(("kind", "options"), MERGES)
    def test_frames_and_gradients(self, stack, kind, options, interface, order):
        narrow = 16 if options.get("width") in ("interpolate", "project") else 24
        stacks = [stack(dim=24, garbage=0.0), stack(layers=3, dim=narrow, seed=1, garbage=0.0)]
        fusion = self.fusion(stacks, {"kind": kind, **options}, interface, order)
        there = on_gpu(fusion)
        ours, theirs = fusion(stacks, "asr"), there(moved(stacks, CUDA), "asr")
        assert theirs.lengths.tolist() == ours.lengths.tolist()
        assert_close(theirs.hidden, ours.hidden)
        if not ours.hidden.requires_grad:  # nothing learned, or a choice made
            return
        factors = torch.linspace(-1, 1, ours.hidden.numel()).view_as(ours.hidden)
        (ours.hidden * factors).sum().backward()
        (theirs.hidden * factors.to(CUDA)).sum().backward()
        assert_same_gradients(there, fusion)

    @pytest.mark.parametrize("interface", catalog.INTERFACES)
    @pytest.mark.parametrize("low", [False, True])
    def test_a_training_step_is_finite(self, stack, interface, low):
        """With what is drawn and dropped, in float32 and bfloat16."""
        fusion = self.fusion([stack(garbage=0.0)], {"kind": "add"}, interface, "merge_first")
        fusion.to(CUDA).train()
        with torch.autocast("cuda", torch.bfloat16, enabled=low):
            hidden = fusion(moved([stack(garbage=0.0)], CUDA), "asr").hidden
        assert torch.isfinite(hidden).all()
        if not any(p.requires_grad for p in fusion.parameters()):
            return
        hidden.float().square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in fusion.parameters() if p.grad is not None)

    @pytest.mark.parametrize("interface", STREAMED)
    @pytest.mark.parametrize("normalize", ["none", "layer_norm"])
    def test_layers_that_come_one_by_one(self, stack, interface, normalize):
        whole = stack(layers=13, garbage=0.0)
        recipe = read_recipe(recipe_of({"kind": "add"}, interface, normalize=normalize))
        torch.manual_seed(0)
        fusion = build.build_fusion(recipe, [whole.spec], ["asr"])
        with torch.no_grad():
            expected = fusion([whole], "asr").hidden
        there = moved(whole, CUDA)
        stream = on_gpu(fusion).stream("asr", [there.spec], [there.lengths])
        for index, hidden in enumerate(there.layers):
            stream.accumulate(index, hidden)
        assert_close(stream.result().hidden, expected)


@pytest.mark.parametrize(("name", "options"), HEADS)
class TestHead:
    def test_predictions_loss_and_gradients(self, name, options):
        head = made_head(name, **options)
        given, wanted = head_frames(rows=rows_of(name)), head_targets(name)
        there = on_gpu(head)
        for one, other in zip(
            moved(there.predict(moved(given, CUDA)), CPU), head.predict(given), strict=True
        ):
            if isinstance(other, torch.Tensor):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
            else:
                assert one == other
        at_rest(head)
        at_rest(there)
        ours, theirs = head.loss(given, wanted), there.loss(*moved((given, wanted), CUDA))
        assert theirs.count == ours.count
        assert_close(theirs.total, ours.total)
        if any(p.requires_grad for p in head.parameters()):
            ours.total.backward()
            theirs.total.backward()
            assert_same_gradients(there, head)


class TestPrompted:
    @pytest.mark.parametrize("fusion", FUSIONS)
    @pytest.mark.parametrize("options", WRITERS)
    @pytest.mark.parametrize("beam_size", [1, 4])
    def test_what_is_written_cached_uncached_and_alone(self, fusion, options, beam_size):
        made, head, given = reader(fusion=fusion, **options), writer(beam_size), prompted_frames()
        expected = generate(made, head, given, "asr")
        made, head, given = made.to(CUDA), head.to(CUDA), moved(given, CUDA)
        found = generate(made, head, given, "asr")
        assert found == generate(made, head, given, "asr", use_cache=False)
        assert found == [generate(made, head, alone(given, row), "asr")[0] for row in range(3)]
        assert found == expected

    @pytest.mark.parametrize("fusion", FUSIONS)
    @pytest.mark.parametrize("prompts", [(), ("write it", "transcribe what is said")])
    def test_what_is_read_and_its_gradients(self, fusion, prompts):
        made = reader(fusion=fusion, prompts=prompts)
        there, given, text = on_gpu(made), prompted_frames(), texts([1, 2, 3], [4], [5, 6])
        places = ["speech", "prompt", "text", "prefix"]
        ours = made(given, "asr", places, text=text)
        theirs = there(moved(given, CUDA), "asr", places, text=moved(text, CUDA))
        for one, other in zip(theirs, ours, strict=True):
            assert one.lengths.tolist() == other.lengths.tolist()
            for row, size in enumerate(other.lengths.tolist()):
                assert_close(one.hidden[row, :size], other.hidden[row, :size])
        ours[2].hidden[:, 0].square().sum().backward()
        theirs[2].hidden[:, 0].square().sum().backward()
        assert_same_gradients(there, made)


def extracted(recipe, workspace, name, monkeypatch=None):
    """The store of the first upstream and its utterances."""
    recipe = read_recipe(merged(recipe, {"store": {"folder": str(workspace / name)}}))
    tasks = load_tasks(recipe)
    if monkeypatch:
        monkeypatch.setattr(speechfuse.extract, "best_device", lambda: CPU)
    stores = fill_stores(recipe, tasks, splits=("dev",))
    return stores["emotion"][0], tasks["emotion"].splits["dev"]


@pytest.mark.parametrize("name", ["hubert", "wavlm", "whisper", "w2v-bert"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-4), ("float16", 5e-3), ("bfloat16", 4e-2), ("int8", 0.1)],
)
def test_layers_that_are_stored(
    workspace, tone_recipe, encoder, monkeypatch, name, dtype, tolerance
):
    part = {"kind": "huggingface", "source": str(encoder(name))}
    tone_recipe["upstreams"] = {"ssl": part}
    recipe = merged(tone_recipe, {"store": {"dtype": dtype}})
    found, utterances = extracted(recipe, workspace, "gpu")
    expected, _ = extracted(recipe, workspace, "cpu", monkeypatch)
    ours, theirs = found.batch(utterances), expected.batch(utterances)
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


class Stop(Exception):
    pass


def ways(tone_recipe, encoder):
    """Recipes of several kinds, without dropout."""
    ssl = {"kind": "huggingface", "source": str(encoder("hubert"))}
    trained = merged(tone_recipe, {"upstreams": {"ssl": ssl}, "training": {"steps": 4}})
    trained["upstreams"].pop("mel")
    trained["tasks"].pop("verification")
    prompted = {
        "fusion": {"interface": {"kind": "gated_encoder"}, "per_task": False},
        "context": {"preset": "tiny", "layers": 2, "dim": 32, "heads": 2, "join": 4, "dropout": 0},
        "tasks": {"asr": {"units": "characters", "head": {"kind": "text", "ctc": 0.3}}},
    }
    return {
        "frozen": merged(
            tone_recipe, {"fusion": {"per_task": False}, "training": {"log_conflict": 6}}
        ),
        "tuned": merged(trained, {"training": {"train_upstream": "top_1"}}),
        "adapters": merged(trained, {"training": {"lora": {"rank": 2}}}),
        "prompted": merged(tone_recipe, prompted),
    }


def losses(folder):
    return {(step, name): v for step, name, v in Run(folder).log() if name.startswith("train/")}


class TestRun:
    @pytest.mark.parametrize("way", ["frozen", "tuned", "adapters", "prompted"])
    def test_trains_goes_on_evaluates_and_predicts(
        self, workspace, tone_recipe, tiny_corpus, encoder, way
    ):
        given = merged(ways(tone_recipe, encoder)[way], {"training": {"evaluate_every": 2}})
        recipe = read_recipe(given)
        metrics = train_run(recipe, workspace / "whole")

        def interrupt(what, done, total):
            if what == "training steps" and done == 3:
                raise Stop

        with pytest.raises(Stop):
            train_run(recipe, workspace / "parts", interrupt)
        train_run(recipe, workspace / "parts")
        whole, parts = (
            load_file(workspace / name / "model.safetensors") for name in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        for name, tensor in whole.items():  # sums of CTC's gradient have no order on a GPU
            difference = (tensor.double() - parts[name].double()).abs().mean()
            assert difference < 1e-3, name
        again = evaluate_again(workspace / "whole")
        for task, scores in metrics["test"].items():
            for metric, score in scores.items():
                assert again["test"][task][metric]["value"] == pytest.approx(
                    score["value"], abs=0.1
                )
        files = [tiny_corpus.parent / f"s7-{i}.wav" for i in range(2)]
        lines = [line.split("\t") for line in predict_files(workspace / "whole", files)]
        assert {line[-2] for line in lines} >= {"emotion"}
        kept = {
            row["id"]: row["prediction"]
            for row in Run(workspace / "whole").table("test", "emotion")
        }
        found = [line[2] for line in lines if line[1] == "emotion"]
        assert found == [kept["s7-0"], kept["s7-1"]]

    @pytest.mark.parametrize("way", ["frozen", "tuned", "adapters", "prompted"])
    def test_learns_as_on_the_cpu(self, workspace, tone_recipe, encoder, monkeypatch, way):
        recipe = read_recipe(merged(ways(tone_recipe, encoder)[way], {"training": {"steps": 4}}))
        train_run(recipe, workspace / "gpu")
        monkeypatch.setattr(
            fit, "trainer_options", lambda rank, strategy: {"accelerator": "cpu", "devices": 1}
        )
        train_run(recipe, workspace / "cpu")
        found, expected = losses(workspace / "gpu"), losses(workspace / "cpu")
        assert found.keys() == expected.keys()
        assert found
        for place, value in expected.items():
            assert float(found[place]) == pytest.approx(float(value), rel=0.02), place

    @pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
    @pytest.mark.parametrize("way", ["frozen", "tuned", "prompted"])
    def test_mixed_precision(self, workspace, tone_recipe, encoder, way, precision):
        change = {"training": {"precision": precision, "steps": 4, "evaluate_every": 2}}
        given = merged(ways(tone_recipe, encoder)[way], change)
        metrics = train_run(read_recipe(given), workspace / "run")
        assert metrics["test"]["asr"]["wer"]["value"] >= 0
        tensors = load_file(workspace / "run" / "model.safetensors").values()
        assert all(torch.isfinite(t).all() for t in tensors)


def test_vectors_are_there_when_they_are_read():
    """On their way to the host, while the GPU is still at work on them."""
    given = torch.ones(4096, 4096, device=CUDA)
    for _ in range(20):
        (found,) = moved([given @ given], CPU)
        assert bool((found == 4096).all())


def test_frames_and_stacks_move_whole(stack):
    there = moved([stack(), Frames(torch.ones(1, 2, 3), torch.ones(1), 1.0)], CUDA)
    assert isinstance(there[0], LayerStack)
    assert {layer.device.type for layer in there[0].layers} == {"cuda"}
    assert there[1].lengths.device.type == "cuda"
