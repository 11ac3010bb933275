"""Every architecture against transformers itself: same hidden states, exact lengths."""

import json
import math
import shutil

import pytest
import torch
from torch import nn

from architectures import ARCHITECTURES
from speechfuse import catalog
from speechfuse.audio import pad_clips
from speechfuse.errors import DataError, UpstreamError
from speechfuse.plan import count_products
from speechfuse.upstreams import huggingface
from speechfuse.upstreams.huggingface import _DEFAULTS, HuggingFace

CLIPS = (16000, 5000, 9001, 900)  # samples


def clips(sizes=CLIPS):
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(size, generator=generator) for size in sizes]


def upstream(folder, **options):
    if "whisper" in folder.name:
        options.setdefault("whisper_pad", 0.0)
    return HuggingFace(source=str(folder), **options)


def reference(folder, clip):
    """All hidden states of transformers' own model on one clip alone, the last one normed."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = model.encoder if "whisper" in folder.name else model
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    given = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt")
    if "bert" not in folder.name:
        given.pop("attention_mask", None)
    with torch.no_grad():
        out = model(**given, output_hidden_states=True)
    return [*out.hidden_states[:-1], out.last_hidden_state]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hidden_states_equal_those_of_transformers(name, encoder):
    folder = encoder(name)
    part = upstream(folder, whisper_pad="30s")
    for clip in clips():
        stack = part(pad_clips([clip]))
        expected = reference(folder, clip)
        assert len(stack.layers) == len(expected) == 4
        frames = int(stack.lengths[0])
        assert frames == stack.layers[0].shape[1] <= expected[0].shape[1]
        for ours, theirs in zip(stack.layers, expected, strict=True):
            torch.testing.assert_close(ours[0], theirs[0, :frames], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_gives_the_same_frames_as_each_clip_alone(name, encoder):
    part = upstream(encoder(name))
    wav = pad_clips(clips())
    wav.samples[1, 5000:] = 0.3  # whatever lies in the padding is not read
    together = part(wav)
    for row, clip in enumerate(clips()):
        alone = part(pad_clips([clip]))
        frames = int(alone.lengths[0])
        assert frames == int(together.lengths[row])
        for one, many in zip(alone.layers, together.layers, strict=True):
            torch.testing.assert_close(one[0], many[row, :frames], atol=3e-5, rtol=1e-4)
            assert (many[row, frames:] == 0).all()


@pytest.fixture(params=catalog.UPSTREAMS)
def any_upstream(request, encoder):
    """Makes each upstream of the catalog anew; `huggingface` has its architectures besides."""
    source = {"huggingface": {"source": str(encoder("hubert"))}}
    options = catalog.checked_options("upstream", request.param, source.get(request.param, {}))
    return lambda: catalog.UPSTREAMS[request.param](**options)


class TestContract:
    def test_the_stack_is_as_planned(self, any_upstream):
        part = any_upstream()
        stack = part(pad_clips(clips()))
        assert stack.spec == part.plan.spec
        seconds = torch.tensor(CLIPS) / part.sample_rate
        assert (stack.lengths / stack.frame_rate - seconds).abs().max() < 5 / stack.frame_rate
        assert part(pad_clips([torch.ones(part.plan.min_samples)])).lengths.tolist() == [1]

    def test_padding_never_reaches_a_valid_frame(self, any_upstream):
        part, wav = any_upstream(), pad_clips(clips())
        clean = part(wav)
        for row, size in enumerate(CLIPS):
            wav.samples[row, size:] = 0.3
        dirty = part(wav)
        assert all(torch.equal(a, b) for a, b in zip(clean.layers, dirty.layers, strict=True))
        for row, frames in enumerate(clean.lengths.tolist()):
            assert all((layer[row, frames:] == 0).all() for layer in clean.layers)

    def test_alone_equals_in_a_batch(self, any_upstream):
        part = any_upstream()
        together = part(pad_clips(clips()))
        for row, clip in enumerate(clips()):
            alone = part(pad_clips([clip]))
            frames = int(alone.lengths[0])
            assert frames == int(together.lengths[row])
            for one, many in zip(alone.layers, together.layers, strict=True):
                torch.testing.assert_close(one[0], many[row, :frames], atol=3e-5, rtol=1e-4)

    def test_frozen_stays_frozen_in_train(self, any_upstream):
        part, wav = any_upstream(), pad_clips(clips())
        part.load()
        before = part(wav)
        nn.ModuleList([part]).train()
        assert not any(p.requires_grad for p in part.parameters())
        after = part(wav)
        assert not any(layer.requires_grad for layer in after.layers)
        assert all(torch.equal(a, b) for a, b in zip(before.layers, after.layers, strict=True))

    def test_made_again_it_gives_the_same_under_the_same_identity(self, any_upstream):
        one, other, wav = any_upstream(), any_upstream(), pad_clips(clips())
        assert one.identity() == other.identity()
        assert one.identity()["source"]
        layers = zip(one(wav).layers, other(wav).layers, strict=True)
        assert all(torch.equal(a, b) for a, b in layers)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_plan_from_config_json_equals_the_loaded_model(name, encoder):
    folder = encoder(name)
    part = upstream(folder, whisper_pad="30s")
    assert part.states is None  # nothing is loaded for a plan
    part.load()
    model = part.states.model
    unused = ("masked_spec_embed",)
    parameters = sum(p.numel() for n, p in model.named_parameters() if n not in unused)
    assert part.plan.parameters == parameters
    stack = part(pad_clips([torch.zeros(32000)]))
    assert stack.spec == part.plan.spec
    shortest = torch.tensor([part.plan.min_samples])
    assert int(part.states.frames(shortest)) == 1
    if part.plan.min_samples > 1:
        assert int(part.states.frames(shortest - 1)) < 1


class TestLayers:
    @pytest.mark.parametrize("layers", [[0], [1], [0, 2], [1, 3]])
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_those_asked_for_are_those_of_the_whole_and_none_above_is_made(
        self, encoder, name, layers
    ):
        whole, part = upstream(encoder(name)), upstream(encoder(name), layers=layers)
        wav = pad_clips(clips())
        every, kept = whole(wav), part(wav)
        assert part.layers == tuple(layers)
        assert whole.layers == (0, 1, 2, 3)
        assert kept.spec == part.plan.spec
        for number, hidden in zip(layers, kept.layers, strict=True):
            assert torch.equal(hidden, every.layers[number])
        assert len(part.blocks()) == layers[-1]

    @pytest.mark.recipe
    @pytest.mark.parametrize("layers", [[0], [2], [3]])
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_plans_count_what_is_loaded(self, encoder, name, layers):
        part, whole = (upstream(encoder(name), layers=asked) for asked in (layers, None))
        part.load()
        read = (p for n, p in part.named_parameters() if not n.endswith("masked_spec_embed"))
        assert part.plan.parameters == sum(p.numel() for p in read)
        assert (part.plan.macs_per_second < whole.plan.macs_per_second) == (layers[-1] < 3)

    @pytest.mark.parametrize("tuned", [False, True])
    @pytest.mark.parametrize("name", ["hubert", "wavlm", "whisper", "w2v-bert"])
    def test_a_stream_computes_what_is_taken_of_it(self, encoder, name, tuned):
        part, called = upstream(encoder(name)), []
        part.load()
        part.tuned = tuned
        for index, block in enumerate(part.blocks()):
            norm = block.final_layer_norm  # each block has one
            norm.register_forward_hook(lambda *_, index=index: called.append(index))
        _, made = part.stream(pad_clips(clips()))
        assert called == []
        for blocks in range(3):
            next(made)
            assert called == list(range(blocks))

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            ([4], "it has layers 0 to 3"),
            ([-1], "it has layers 0 to 3"),
            ([], "name one or more"),
            ([2, 1], r"each once, rising: \[1, 2\]"),
            ([1, 1], r"each once, rising: \[1\]"),
        ],
    )
    def test_what_is_not_there_is_refused(self, encoder, layers, message):
        with pytest.raises(UpstreamError, match=message):
            upstream(encoder("hubert"), layers=layers)


class TestBfloat16:
    @pytest.fixture(autouse=True)
    def there(self, monkeypatch):
        """Products are right where they are slow, too."""
        monkeypatch.setattr(huggingface, "has_bfloat16", lambda: True)

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_states_are_near_those_of_float32_and_no_padding_reaches_them(self, encoder, name):
        exact, near = (upstream(encoder(name), compute=c) for c in ("float32", "bfloat16"))
        wav = pad_clips(clips())
        dirty = pad_clips(clips())
        dirty.samples[1, 5000:] = 0.3
        frames = exact(wav).lengths
        layers = zip(exact(wav).layers, near(wav).layers, near(dirty).layers, strict=True)
        for one, other, again in layers:
            assert other.dtype == torch.float32
            assert torch.equal(other, again)
            valid = torch.arange(one.shape[1]) < frames[:, None]
            drift = (one - other)[valid].norm() / one[valid].norm()
            assert drift < 0.03
        assert drift > 1e-4  # it is computed otherwise
        assert exact.manner() != near.manner()

    def test_a_machine_without_it_refuses(self, encoder, monkeypatch):
        monkeypatch.setattr(huggingface, "has_bfloat16", lambda: False)
        part = upstream(encoder("hubert"), compute="bfloat16")
        with pytest.raises(UpstreamError, match="use float32"):
            part.load()

    def test_the_padded_policy_refuses(self, encoder):
        with pytest.raises(UpstreamError, match="use masked"):
            upstream(encoder("hubert"), compute="bfloat16", length_policy="padded")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_utterances_side_by_side_are_those_one_by_one(name, encoder, monkeypatch):
    """A GPU has them side by side along time, a CPU one by one."""
    part, wav = upstream(encoder(name)), pad_clips(clips())
    apart = part(wav)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    together = part(wav)
    for one, other in zip(apart.layers, together.layers, strict=True):
        torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["hubert", "wavlm", "data2vec", "whisper"])
def test_the_planned_products_are_those_that_are_computed(name, encoder):
    """Counted by torch over 10 s, which does not see FFTs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    part, wav = upstream(encoder(name)), pad_clips([torch.randn(160000)])
    part.load()
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels are not counted
        found = count_products(lambda: part(wav)) / 10
    if name == "whisper":
        found += 100 * 2.5 * 400 * math.log2(400)  # FFTs of 100 frames a second
    assert part.plan.macs_per_second == pytest.approx(found, rel=0.06)


def test_the_input_is_normalised_as_the_preprocessor_says(encoder, tmp_path):
    (clip,) = clips((5000,))
    folder, found = tmp_path / "hubert", []
    shutil.copytree(encoder("hubert large"), folder)
    path = folder / "preprocessor_config.json"
    for normalize in (True, False):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": normalize}))
        found.append(upstream(folder)(pad_clips([clip])).layers[-1][0])
        torch.testing.assert_close(found[-1], reference(folder, clip)[-1][0], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(*found, atol=1e-3)


def test_defaults_equal_those_of_transformers():
    import transformers

    for kind, defaults in _DEFAULTS.items():
        config = transformers.AutoConfig.for_model(kind).to_dict()
        for key, value in defaults.items():
            found = config[key]
            assert (list(found) if isinstance(found, tuple) else found) == value, (kind, key)


def test_padded_policy_is_what_transformers_gives_for_a_padded_batch(encoder):
    """Group norm over the padding moves valid frames: the fault that `masked` removes."""
    import transformers

    folder = encoder("hubert")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    batch = clips((64000, 16000))
    given = extractor(
        [c.numpy() for c in batch], sampling_rate=16000, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = model(given["input_values"]).last_hidden_state
    ours = upstream(folder, length_policy="padded")(pad_clips(batch)).layers[-1]
    torch.testing.assert_close(ours[1, :49], theirs[1, :49], atol=3e-5, rtol=1e-4)
    exact = upstream(folder)(pad_clips(batch)).layers[-1]
    drift = (ours[1, :49] - exact[1, :49]).norm() / exact[1, :49].norm()
    assert drift > 0.05


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_frozen_stays_frozen_in_train(encoder, name):
    part = upstream(encoder(name))
    part.load()
    around = nn.ModuleList([part]).train()
    assert around.training
    assert not any(module.training for module in part.modules())
    assert not any(p.requires_grad for p in part.parameters())
    wav = pad_clips(clips())
    one, other = part(wav), part(wav)
    assert all(torch.equal(a, b) for a, b in zip(one.layers, other.layers, strict=True))


def test_random_weights_come_from_the_seed(encoder):
    folder = str(encoder("hubert"))
    wav = pad_clips(clips())
    runs = [
        HuggingFace(source=folder, weights="random", seed=seed)(wav).layers[-1]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])
    assert not torch.allclose(runs[0], HuggingFace(source=folder)(wav).layers[-1])


def test_identity_names_the_weights(encoder):
    folder = str(encoder("hubert"))
    identity = HuggingFace(source=folder).identity()
    assert len(identity["weights_sha256"]) == 64
    assert identity["source"] == folder
    random = HuggingFace(source=folder, weights="random", seed=3).identity()
    assert random["weights"] == "random, seed 3"


def test_identity_names_the_commit_that_the_hub_gave(encoder, tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out; no revision, a branch and a commit are asked for."""
    import huggingface_hub.constants

    commit, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--org--tiny"
    shutil.copytree(encoder("hubert"), cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for revision in (None, "main", commit):
        identity = HuggingFace(source="org/tiny", revision=revision).identity()
        assert identity["revision"] == commit
        assert identity["source"] == "org/tiny"
    assert "revision" not in HuggingFace(source=str(encoder("hubert"))).identity()


def test_an_encoder_without_a_decoder_loads(encoder, tmp_path):
    """Only `encoder.*` in the file, as encoder-only exports of Whisper have it."""
    from safetensors.torch import load_file, save_file

    source, folder = encoder("whisper"), tmp_path / "whisper-encoder"
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    kept = {k: v.half() for k, v in tensors.items() if k.startswith("encoder.")}
    assert kept
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    wav = pad_clips(clips())
    one, other = upstream(source)(wav), upstream(folder)(wav)
    torch.testing.assert_close(one.layers[-1], other.layers[-1], atol=0.02, rtol=0.02)
    assert other.layers[0].dtype == torch.float32


class TestWhisper:
    @pytest.mark.parametrize("pad", [0.0, 1.0, 3.0])
    def test_the_spectrogram_equals_that_of_the_30_s_mode(self, encoder, pad):
        folder = encoder("whisper")
        short, full = (upstream(folder, whisper_pad=p) for p in (pad, "30s"))
        short.load()
        full.load()
        wav = pad_clips(clips((16000, 5000, 201, 200, 7)))
        ours, sizes = short.states._log_mel(wav)
        theirs, _ = full.states._log_mel(wav)
        for row, size in enumerate(sizes.tolist()):
            torch.testing.assert_close(ours[row, :, :size], theirs[row, :, :size])
            assert (ours[row, :, size:] == 0).all()

    def test_the_loudest_frame_may_lie_past_the_end(self, encoder):
        """A click in the last sample sets the floor of the whole clip in the 30 s mode, too."""
        folder = encoder("whisper")
        clip = torch.zeros(1600)
        clip[-1] = 1.0
        short, full = (upstream(folder, whisper_pad=p) for p in (0.0, "30s"))
        short.load()
        full.load()
        ours = short.states._log_mel(pad_clips([clip]))[0]
        torch.testing.assert_close(ours, full.states._log_mel(pad_clips([clip]))[0][..., :10])

    def test_output_is_cut_to_the_clip(self, encoder):
        part = upstream(encoder("whisper"), whisper_pad=3.0)
        stack = part(pad_clips(clips((16000, 321, 320, 1))))
        assert stack.lengths.tolist() == [50, 2, 1, 1]
        assert stack.layers[0].shape[1] == 50

    def test_over_30_s_is_windowed_never_cut(self, encoder):
        part = upstream(encoder("whisper"), whisper_pad=1.0)
        room = 29 * 16000
        long = clips((room + 16000, 8000))
        stack = part(pad_clips(long))
        assert stack.lengths.tolist() == [1500, 25]
        parts = [part(pad_clips([piece])) for piece in (long[0][:room], long[0][room:], long[1])]
        for layer, (a, b, c) in zip(
            stack.layers, zip(*(p.layers for p in parts), strict=True), strict=True
        ):
            torch.testing.assert_close(layer[0], torch.cat([a[0], b[0]]), atol=3e-5, rtol=1e-4)
            torch.testing.assert_close(layer[1, :25], c[0], atol=3e-5, rtol=1e-4)

    def test_over_30_s_is_refused_if_asked(self, encoder):
        part = upstream(encoder("whisper"), long="refuse")
        with pytest.raises(DataError, match=r"31\.0 s is longer than the 30\.0 s"):
            part(pad_clips([torch.zeros(31 * 16000)]))


class TestBadInput:
    def test_a_clip_shorter_than_the_receptive_field(self, encoder):
        with pytest.raises(DataError, match="399 samples is shorter than the 400"):
            upstream(encoder("hubert"))(pad_clips([torch.zeros(399)]))

    def test_no_such_folder(self):
        with pytest.raises(UpstreamError, match="no folder at"):
            HuggingFace(source="./nowhere")

    def test_a_hub_name_without_a_network(self, monkeypatch):
        with pytest.raises(UpstreamError, match="check the name and the network"):
            HuggingFace(source="no-such-organisation/no-such-model")

    def test_a_folder_without_weights(self, encoder, tmp_path):
        folder = tmp_path / "empty"
        shutil.copytree(encoder("hubert"), folder)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(UpstreamError, match="pickled weights, which are never read"):
            HuggingFace(source=str(folder)).load()
        (folder / "pytorch_model.bin").unlink()
        with pytest.raises(UpstreamError, match=r"has no \*\.safetensors"):
            HuggingFace(source=str(folder)).load()

    def test_a_broken_weight_file(self, encoder, tmp_path):
        folder = tmp_path / "broken"
        shutil.copytree(encoder("hubert"), folder)
        (folder / "model.safetensors").write_bytes(b"not a tensor in sight")
        with pytest.raises(UpstreamError, match="cannot read the weights"):
            HuggingFace(source=str(folder)).load()

    def test_weights_of_another_model(self, encoder, tmp_path):
        folder = tmp_path / "mixed"
        shutil.copytree(encoder("hubert"), folder)
        shutil.copy(encoder("whisper") / "model.safetensors", folder)
        with pytest.raises(UpstreamError, match=r"lack \d+ tensors of the encoder"):
            HuggingFace(source=str(folder)).load()

    def test_an_architecture_that_is_not_known(self, encoder, tmp_path):
        folder = tmp_path / "other"
        shutil.copytree(encoder("hubert"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "hubbert"}))
        with pytest.raises(UpstreamError, match="Did you mean 'hubert'"):
            HuggingFace(source=str(folder))
        with pytest.raises(UpstreamError, match=r"has no config\.json"):
            HuggingFace(source=str(tmp_path))

    def test_another_sample_rate(self, encoder, tmp_path):
        folder = tmp_path / "telephone"
        shutil.copytree(encoder("hubert"), folder)
        (folder / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
        with pytest.raises(UpstreamError, match="wants audio at 8000 Hz"):
            HuggingFace(source=str(folder))
