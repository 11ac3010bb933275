"""Encoders in the Hugging Face layout, from a folder or from the hub at a pinned revision.

A folder holds config.json, preprocessor_config.json and model.safetensors. Weights in other
formats are pickles and are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from speechfuse.audio import SAMPLE_RATE
from speechfuse.contracts import Upstream, UpstreamPlan
from speechfuse.errors import DataError, UpstreamError, damage, did_you_mean
from speechfuse.ops import file_hash, kept_random, length_mask, zero_padding
from speechfuse.resources import resource
from speechfuse.types import LayerStack, Waveforms
from speechfuse.upstreams import conv_transformer, w2v_bert, whisper
from speechfuse.upstreams.compiling import compiler_failure

CONV_FAMILY = ("hubert", "wavlm", "wav2vec2", "data2vec-audio")
# What a config.json may leave out, as transformers' configuration classes fill it in.
_CONV_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "hubert": _CONV_DEFAULTS | {"feat_extract_norm": "group"},
    "wav2vec2": _CONV_DEFAULTS | {"feat_extract_norm": "group"},
    "wavlm": _CONV_DEFAULTS | {"feat_extract_norm": "group", "num_buckets": 320},
    "data2vec-audio": _CONV_DEFAULTS | {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19},
    "wav2vec2-bert": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feature_projection_input_dim": 160,
        "conv_depthwise_kernel_size": 31,
        "position_embeddings_type": "relative_key",
        "left_max_position_embeddings": 64,
        "right_max_position_embeddings": 8,
    },
    "whisper": {
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_ffn_dim": 1536,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
    },
}
_FILES = ("config.json", "preprocessor_config.json")  # that are fetched besides weights
_FETCH = "fetch the folder again"
_UNUSED = ("masked_spec_embed", "adapter.", "intermediate_ffn.")  # no hidden state reads them
_CONSTANT = ("embed_positions.",)  # the sinusoids of whisper


class HuggingFace(Upstream):
    """HuBERT, WavLM, wav2vec 2.0, data2vec-audio, W2v-BERT 2.0 or Whisper, all hidden states.

    State 0 is what the first transformer block reads; the last one is the model's
    `last_hidden_state`, after the final norm where there is one.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        *,
        source: str,
        revision: str | None = None,
        weights: Literal["pretrained", "random"] = "pretrained",
        seed: int = 0,
        length_policy: Literal["masked", "equal", "padded"] = "masked",
        whisper_pad: Annotated[float, Field(ge=0, lt=30)] | Literal["30s"] = 3.0,
        long: Literal["window", "refuse"] = "window",
        layers: list[int] | None = None,
        compute: Literal["float32", "bfloat16"] = "float32",
        compile: bool = False,
    ) -> None:
        """source: a folder, a name on the hub, or synthetic-hubert or synthetic-whisper, which
        ship with the library. revision: a commit of the hub's repository.

        weights: random keeps the architecture and draws the weights from `seed`, as a control.
        length_policy: masked, exact frames in padded batches; equal, batches of one length only;
        padded, as transformers computes a padded batch. whisper_pad: seconds of silence after
        each clip, or 30s; 3 s were as good on development data (docs/experiments.md). long: what
        whisper does with clips over 30 s. layers: numbers of the hidden states to keep, rising,
        all if None; nothing above the last of them is loaded or computed. compute: of the large
        products of a frozen encoder; bfloat16 takes about half the time where the processor has
        it, norms and sums between blocks stay in float32. compile: by torch.compile what follows
        attention in the blocks of a frozen encoder, for a GPU; a CPU gains little.

        Raises:
            UpstreamError: no such folder or repository, no safetensors, an unknown architecture,
                a layer that it does not have, bfloat16 or compile of length_policy padded, compile
                of a W2v-BERT.
        """
        super().__init__()
        self.source, self.revision = source, revision
        self.random_seed = seed if weights == "random" else None
        self.length_policy, self.whisper_pad, self.long = length_policy, whisper_pad, long
        if compute == "bfloat16" and length_policy == "padded":
            raise UpstreamError(
                f"{source}: length_policy padded computes as transformers does, in float32; use "
                "masked for compute bfloat16"
            )
        self.compute, self.compiled = compute, compile
        folder = model_folder(source, revision, weights=False)
        self.config, self.preprocessor = _configs(folder, source)
        ours = self.config["model_type"] != "wav2vec2-bert" and length_policy != "padded"
        if compile and not ours:
            raise UpstreamError(
                f"{source}: compile is of blocks that speechfuse computes, those of W2v-BERT "
                "and of length_policy padded are transformers'; leave compile out"
            )
        with damage(f"the configuration of {source}", UpstreamError, _FETCH):
            depth = self.config[_depth_key(self.config)]
            self._layers = _checked_layers(layers, depth, source)
            self.plan = _plan(self.config, self.preprocessor, source, whisper_pad, self._layers)
        self.states: Any = None

    def load(self) -> None:
        """Read the weights.

        Raises:
            UpstreamError: no safetensors, a broken file, or one of another model; bfloat16 or
                compile asked of a machine that has none.
        """
        if self.states is not None:
            return
        if self.compute == "bfloat16" and not has_bfloat16():
            raise UpstreamError(
                f"{self.source}: compute bfloat16, but neither a GPU is here nor a processor that "
                "has it (AVX512-BF16, AMX or ARM's), and without it is slower; use float32"
            )
        if self.compiled and (failure := compiler_failure()):
            raise UpstreamError(
                f"{self.source}: compile, but torch.compile fails here: {failure}. It needs a C++ "
                "compiler (g++), Python's headers (python3-dev) and for a GPU triton; install what "
                "is missing, or leave compile out"
            )
        folder = model_folder(self.source, self.revision)
        dtype: torch.dtype = getattr(torch, self.compute)
        with damage(f"the configuration of {self.source}", UpstreamError, _FETCH):
            model = _load(folder, self.config, self.source, self.random_seed)
            _cut(model, self.config, self._layers[-1])
            kind = self.config["model_type"]
            if kind == "whisper":
                pad, long = self.whisper_pad, self.long
                self.states = whisper.WhisperStates(
                    model, self.preprocessor, pad, long, dtype, self.compiled
                )
            elif kind == "wav2vec2-bert":
                self.states = w2v_bert.W2vBert(model, self.preprocessor, dtype)
            else:
                policy = self.length_policy
                self.states = conv_transformer.ConvTransformer(
                    model, self.preprocessor, policy, dtype, self.compiled
                )
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> HuggingFace:
        """Evaluation mode, whatever the model around it does; a tuned one too, without dropout."""
        del mode
        return super().train(False)

    @property
    def layers(self) -> tuple[int, ...]:
        return self._layers

    def blocks(self) -> Sequence[nn.Module]:
        model = self.states.model
        return list(getattr(model, "encoder", model).layers)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        resting = tuple(f"states.model.{name}" for name in (*_UNUSED, *_CONSTANT))
        return [(n, p) for n, p in self.named_parameters() if not n.startswith(resting)]

    def frames(self, samples: Tensor) -> Tensor:
        found: Tensor = self.states.frames(samples)
        return found

    def forward(self, wav: Waveforms) -> LayerStack:
        """All hidden states, with gradients if it is tuned.

        Raises:
            DataError: a clip is shorter than the encoder's receptive field.
        """
        with torch.set_grad_enabled(self.tuned and torch.is_grad_enabled()):
            lengths, made = self.stream(wav)
            layers = tuple(made)
        assert len(layers) == self.plan.spec.num_layers, (len(layers), self.plan.spec)
        return LayerStack(layers, lengths, self.plan.spec.frame_rate)

    def stream(self, wav: Waveforms) -> tuple[Tensor, Iterator[Tensor]]:
        """Nothing but the block at work is held, and nothing is computed before it is asked for.

        Raises:
            DataError: a clip is shorter than the encoder's receptive field.
        """
        self.load()
        shortest = int(wav.lengths.min())
        if shortest < self.plan.min_samples:
            raise DataError(
                f"a clip of {shortest} samples is shorter than the {self.plan.min_samples} that "
                f"{self.source} needs for one frame; remove it from the manifest"
            )
        silent = wav.samples * length_mask(wav.lengths, wav.samples.shape[1])
        lengths = self.states.frames(wav.lengths)
        given = Waveforms(silent, wav.lengths, wav.sample_rate)
        states = self.states.states(given, frozen=not self.tuned)
        kept = (hidden for number, hidden in enumerate(states) if number in self._layers)
        return lengths, (zero_padding(hidden, lengths) for hidden in kept)

    def identity(self) -> dict[str, str]:
        folder = model_folder(self.source, self.revision)
        found = {"source": self.source, "config_sha256": file_hash([folder / "config.json"])}
        in_cache = folder.parent.name == "snapshots"  # of the hub, named by the commit
        if revision := folder.name if in_cache else self.revision:
            found["revision"] = revision
        if self.random_seed is not None:
            return found | {"weights": f"random, seed {self.random_seed}"}
        return found | {"weights_sha256": file_hash(sorted(folder.glob("*.safetensors")))}

    def manner(self) -> dict[str, Any]:
        """Whisper has its silence and windows; batches masked or of one length are as exact."""
        kind = self.config["model_type"]
        padded = kind not in ("whisper", "wav2vec2-bert") and self.length_policy == "padded"
        ours = kind != "wav2vec2-bert" and not padded
        made: dict[str, Any] = {
            "preprocessor": self.preprocessor,
            "compute": self.compute,
            "compiled": self.compiled,
            "attention": "fused, of rows without padding" if ours else "of transformers' modules",
        }
        if kind == "whisper":
            return made | {"whisper_pad": self.whisper_pad, "long": self.long}
        return made | {"padded": padded}


def has_bfloat16() -> bool:
    """Whether this machine computes products of bfloat16 faster than of float32."""
    if torch.cuda.is_available():
        return True
    found: Mapping[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # absent from old ones
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def model_folder(
    source: str, revision: str | None, files: Sequence[str] = _FILES, *, weights: bool = True
) -> Path:
    """The local folder of a source, fetched from the hub if it is not a folder here.

    Raises:
        UpstreamError: no such folder, or nothing of that name on the hub.
    """
    local = Path(source)
    if local.is_dir():
        return local
    shipped = resource("models", source) if "/" not in source else None
    if shipped is not None:
        return shipped
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UpstreamError(f"no folder at {source}; give a folder or a hub name like org/model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=[*files, "*.safetensors*"] if weights else [*files],
            )
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UpstreamError(
            f"cannot fetch {source} at revision {revision or 'main'} ({type(error).__name__}); "
            "check the name and the network, or give a local folder"
        ) from error


def _configs(folder: Path, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json with its class's defaults filled in, and preprocessor_config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise UpstreamError(f"{source} has no config.json; expected a Hugging Face model folder")
    config = _read_json(path, source)
    kind = str(config.get("model_type", "none"))
    known = (*CONV_FAMILY, "wav2vec2-bert", "whisper")
    if kind not in known:
        raise UpstreamError(
            f"{source} is of architecture '{kind}', which speechfuse cannot read layer by layer; "
            f"{did_you_mean(kind, known)}"
        )
    preprocessor_path = folder / "preprocessor_config.json"
    preprocessor = _read_json(preprocessor_path, source) if preprocessor_path.is_file() else {}
    rate = preprocessor.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise UpstreamError(f"{source} wants audio at {rate} Hz, speechfuse gives {SAMPLE_RATE}")
    _check_sizes(config, _DEFAULTS[kind], source)
    return {**_DEFAULTS[kind], **config}, preprocessor


def _check_sizes(config: Mapping[str, Any], defaults: Mapping[str, Any], source: str) -> None:
    """Raise UpstreamError where a count is no positive integer, nor are all of several."""
    for key in config.keys() & defaults.keys():
        value, default = config[key], defaults[key]
        if isinstance(default, int) and not isinstance(default, bool):
            values = [value]
        elif isinstance(default, list):
            values = value if isinstance(value, list) and value else [value]
        else:
            continue
        if not all(isinstance(one, int) and one > 0 for one in values):
            raise UpstreamError(
                f"config.json of {source}: {key} is {value!r}, expected a count; {_FETCH}"
            )


def _read_json(path: Path, source: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UpstreamError(f"{source}: {path.name} is not readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise UpstreamError(f"{source}: {path.name} holds no mapping; is it a model's?")
    return data


def _depth_key(config: Mapping[str, Any]) -> str:
    return "encoder_layers" if config["model_type"] == "whisper" else "num_hidden_layers"


def _checked_layers(layers: Sequence[int] | None, depth: int, source: str) -> tuple[int, ...]:
    """The numbers of the states that are kept; depth: of the blocks, each of which makes one."""
    if layers is None:
        return tuple(range(depth + 1))
    rising = sorted(set(layers))
    if not rising or rising[0] < 0 or rising[-1] > depth:
        raise UpstreamError(
            f"layers {list(layers)} of {source}: it has layers 0 to {depth}, 0 is what its first "
            "block reads; name one or more of these"
        )
    if rising != list(layers):
        raise UpstreamError(f"layers {list(layers)} of {source}: name each once, rising: {rising}")
    return tuple(rising)


def _plan(
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    source: str,
    pad: whisper.Pad,
    layers: Sequence[int],
) -> UpstreamPlan:
    cut = {**config, _depth_key(config): layers[-1]}
    try:
        if config["model_type"] == "whisper":
            whole = whisper.plan(cut, preprocessor, pad)
        elif config["model_type"] == "wav2vec2-bert":
            whole = w2v_bert.plan(cut)
        else:
            whole = conv_transformer.plan(cut, SAMPLE_RATE)
    except KeyError as error:
        raise UpstreamError(f"config.json of {source} has no {error}, which is needed") from error
    unread = 2 * whole.spec.dim if _leaves_norm(config, layers[-1]) else 0
    spec = replace(whole.spec, num_layers=len(layers))
    return whole._replace(spec=spec, parameters=whole.parameters - unread)


def _leaves_norm(config: Mapping[str, Any], last: int) -> bool:
    """Whether there is a norm above the last block, and that block is not reached."""
    normed = config["model_type"] == "whisper" or config.get("do_stable_layer_norm", False)
    return bool(normed) and last < config[_depth_key(config)]


def _cut(model: nn.Module, config: Mapping[str, Any], last: int) -> None:
    """Leave out what only states above the last one read."""
    encoder: Any = getattr(model, "encoder", model)
    encoder.layers = encoder.layers[:last]
    if _leaves_norm(config, last):
        encoder.layer_norm = nn.Identity()


def _load(folder: Path, config: Mapping[str, Any], source: str, seed: int | None) -> nn.Module:
    """The bare encoder in float32; drawn from `seed` if there is one, else read from the folder.

    Under torch.device("meta") it is neither: its shapes alone.
    """
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    whisper_like = config["model_type"] == "whisper"
    model_class: Any = WhisperEncoder if whisper_like else transformers.AutoModel
    full = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    full.layerdrop = full.encoder_layerdrop = 0.0  # every block, always
    if seed is not None or torch.get_default_device().type == "meta":
        with kept_random():
            torch.manual_seed(seed or 0)
            random: nn.Module = (
                WhisperEncoder(full) if whisper_like else model_class.from_config(full)
            )
        return random.float()
    if not list(folder.glob("*.safetensors")):
        pickled = " It has pickled weights, which are never read." if _pickled(folder) else ""
        raise UpstreamError(
            f"{source} has no *.safetensors.{pickled} Use a revision that has them (on the hub "
            "often refs/pr/1), or save the model once with save_pretrained(folder)"
        )
    options: dict[str, Any] = {
        "config": full,
        "dtype": torch.float32,
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    if whisper_like:
        options["key_mapping"] = {r"^(model\.)?encoder\.": ""}
    try:
        with quiet():
            model, report = model_class.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:  # the library raises many kinds for a broken file
        raise UpstreamError(f"cannot read the weights of {source}: {error}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_UNUSED))
    if missing:
        raise UpstreamError(
            f"the weights of {source} lack {len(missing)} tensors of the encoder, the first is "
            f"{missing[0]}; the file is of another model or incomplete"
        )
    loaded: nn.Module = model
    return loaded


def _pickled(folder: Path) -> bool:
    return any(folder.glob("*.bin")) or any(folder.glob("*.pt"))


class quiet:
    """No load report and no progress bar on the terminal while weights are read."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._logging: Any = logging
        self._level = logging.get_verbosity()
        self._logging.set_verbosity_error()
        self._logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._level)
        self._logging.enable_progress_bar()
