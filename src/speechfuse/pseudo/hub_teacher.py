"""A Hugging Face audio classifier as a teacher, from a folder or from the hub.

The folder holds config.json with id2label, preprocessor_config.json and *.safetensors; README.md,
its card, may tell what it was trained on. Weights in other formats are pickles and are not read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from speechfuse.audio import SAMPLE_RATE
from speechfuse.data.teachers import known_models, seen_of_names
from speechfuse.errors import UpstreamError
from speechfuse.measure import best_device
from speechfuse.ops import file_hash
from speechfuse.pseudo.teacher import Teacher
from speechfuse.upstreams.huggingface import model_folder, quiet

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

EMOTIONS = ["angry", "happy", "neutral", "sad"]  # the four of IEMOCAP
_FILES = ("config.json", "preprocessor_config.json", "README.md")


class HubTeacher(Teacher):
    """AutoModelForAudioClassification, clips of one length at a time, so that none is padded."""

    def __init__(self, source: str, revision: str | None = None) -> None:
        """revision: a commit of the hub's repository.

        Raises:
            UpstreamError: no such folder or repository, or no audio classifier in it.
        """
        import transformers

        self.source, self.label, self.wanted = source, "emotion", EMOTIONS
        self._folder = model_folder(source, revision, _FILES, weights=False)
        self._revision = revision
        for name in _FILES[:2]:
            if not (self._folder / name).is_file():
                raise UpstreamError(
                    f"{source} has no {name}; expected an audio classifier in the Hugging Face "
                    "layout, or a run folder"
                )
        try:
            self._config: Any = transformers.AutoConfig.from_pretrained(
                self._folder, trust_remote_code=False
            )
            self._extractor: Any = transformers.AutoFeatureExtractor.from_pretrained(
                self._folder, trust_remote_code=False
            )
        except (ValueError, OSError, KeyError) as error:
            raise UpstreamError(f"{source} cannot be read as a model of audio: {error}") from error
        rate = getattr(self._extractor, "sampling_rate", SAMPLE_RATE)
        if rate != SAMPLE_RATE:
            raise UpstreamError(
                f"{source} wants audio at {rate} Hz, speechfuse gives {SAMPLE_RATE}"
            )
        kind = getattr(self._config, "problem_type", None)
        if kind not in (None, "single_label_classification"):
            raise UpstreamError(
                f"{source} is trained for {kind}; a teacher names one class of each utterance"
            )
        labels = self._config.id2label
        self.classes = [str(labels[index]) for index in range(len(labels))]
        self.seen = seen_of_names(self._told())
        self.max_samples = getattr(self._extractor, "n_samples", None)  # Whisper reads 30 s
        if frames := getattr(self._extractor, "max_length", None):  # AST, 10 ms each
            self.max_samples = frames * SAMPLE_RATE // 100
        self._device = best_device()

    def identity(self) -> dict[str, str]:
        """Hashes of configuration, preprocessing and weights."""
        folder = model_folder(self.source, self._revision, _FILES)
        weights = sorted(folder.glob("*.safetensors"))
        return {
            "config_sha256": file_hash([folder / name for name in _FILES[:2]]),
            "weights_sha256": file_hash(weights),
        }

    @property
    def name(self) -> str:
        return f"{Path(self.source).name}@{self.identity()['weights_sha256'][:8]}"

    def load(self) -> None:
        import transformers

        folder = model_folder(self.source, self._revision, _FILES)
        if not list(folder.glob("*.safetensors")):
            raise UpstreamError(
                f"{self.source} has no *.safetensors, pickled weights are never read; use a "
                "revision that has them, or save the model once with save_pretrained(folder)"
            )
        try:
            with quiet():
                model, report = transformers.AutoModelForAudioClassification.from_pretrained(
                    folder,
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
        except Exception as error:  # the library raises many kinds for a broken file
            raise UpstreamError(f"cannot read {self.source} as a classifier: {error}") from error
        if missing := sorted(report["missing_keys"]):
            raise UpstreamError(
                f"the weights of {self.source} lack {len(missing)} tensors of a classifier, the "
                f"first is {missing[0]}; it is an encoder, or incomplete, and would guess"
            )
        self._model: Any = model.eval().to(self._device)
        lengths = getattr(self._model, "_get_feat_extract_output_lengths", None)
        if lengths:  # wav2vec 2.0 and its family
            while int(lengths(torch.tensor(self.min_samples))) < 1:
                self.min_samples += 1

    @torch.no_grad()
    def probabilities(self, clips: Sequence[NDArray[float32]]) -> Tensor:
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, clip in enumerate(clips):
            by_length[len(clip)].append(index)
        found = torch.zeros(len(clips), len(self.classes), dtype=torch.float64)
        for rows in by_length.values():
            inputs = self._extractor(
                [clips[row] for row in rows], sampling_rate=SAMPLE_RATE, return_tensors="pt"
            )
            logits = self._model(**{k: v.to(self._device) for k, v in inputs.items()}).logits
            found[rows] = logits.double().softmax(-1).cpu()
        return found

    def _told(self) -> list[str]:
        """Corpora of its training: by its card, and what is known of such names and of its base."""
        card = self._folder / "README.md"
        about: dict[str, Any] = {}
        if card.is_file() and (text := card.read_text(errors="replace")).startswith("---"):
            try:
                read = yaml.safe_load(text.split("---")[1])
            except yaml.YAMLError:
                read = None  # a card is written by hand
            about = read if isinstance(read, dict) else {}

        def listed(name: str) -> list[str]:
            value = about.get(name) or []
            return [one for one in ([value] if isinstance(value, str) else value) if one]

        bases = [str(one) for one in listed("base_model")]
        names = [self.source, *bases]
        return [*(str(one) for one in listed("datasets")), *known_models(names)]
