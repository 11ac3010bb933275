"""Python and its libraries: versions, and those that are known to break others."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata

from speechfuse.doctor.finding import Check, Finding

SECONDS = 120.0  # that an import may take
# What must be there: transformers imports its speech models late, when they are first named.
NEEDED = {
    "transformers": "import transformers as t; t.Wav2Vec2Model, t.WhisperFeatureExtractor",
    "lhotse": "import lhotse, lhotse.dataset",
    "lightning": "import lightning.pytorch",
}
OTHERS = ("torchaudio", "torchcodec")  # looked at if they are there
EXTRAS = {  # modules, by the name of the extra that brings them
    "corpus": "espeakng_loader",
    "demo": "gradio",
    "export": "onnxruntime",
    "lm": "flashlight",
    "lora": "peft",
    "probe": "parselmouth",
}


def library_checks() -> list[tuple[str, Check]]:
    """In the order of the report."""
    return [
        ("versions", versions),
        ("imports", imports),
        ("audio files", audio_files),
        ("espeak-ng", espeak),
        ("extras", extras),
        ("model hub", hub),
    ]


def versions() -> Iterator[Finding]:
    """Python and everything that this library declares."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python = ".".join(map(str, sys.version_info[:3]))
    try:
        about = metadata.metadata("speechfuse")
    except metadata.PackageNotFoundError:
        yield Finding(
            "versions",
            "warning",
            f"Python {python}; speechfuse is not installed, so the versions it needs are unknown",
            "install it: pip install -e . in its folder",
        )
        return
    wanted = about["Requires-Python"]
    if python not in SpecifierSet(wanted):
        yield Finding("Python", "problem", python, f"use Python {wanted}")
    else:
        yield Finding("Python", "ok", python)
    shown, wrong = [], []
    for text in metadata.requires("speechfuse") or []:
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            wrong.append((f"{need.name} is missing", need))
            continue
        if not need.specifier.contains(found, prereleases=True):
            wrong.append((f"{need.name} {found}", need))
        elif need.name in ("torch", "transformers", "lightning", "lhotse"):
            shown.append(f"{need.name} {found}")
    for found, need in wrong:
        yield Finding(need.name, "problem", found, f"pip install '{need.name}{need.specifier}'")
    if not wrong:
        yield Finding("libraries", "ok", ", ".join(shown))


def imports() -> Iterator[Finding]:
    """Whether libraries can be imported; each in a process of its own, which may crash."""
    there = {name: f"import {name}" for name in OTHERS if importlib.util.find_spec(name)}
    errors = import_errors(NEEDED | there)
    audio = errors.get("torchaudio")
    for name in NEEDED:
        if error := errors[name]:
            yield Finding(f"import {name}", "problem", error, _remedy(name, error, audio))
    if not any(errors[name] for name in NEEDED):
        yield Finding("imports", "ok", ", ".join(NEEDED))
    if audio:
        yield Finding(
            "torchaudio",
            "problem",
            f"installed and broken: {audio}",
            "pip uninstall torchaudio: nothing here uses it, and transformers' speech models "
            "cannot be imported beside a broken one; or install the one of this torch",
        )
    elif "torchaudio" in errors:
        yield Finding("torchaudio", "ok", f"{_version('torchaudio')}, not needed")
    if error := errors.get("torchcodec"):
        yield Finding(
            "torchcodec",
            "warning",
            f"installed and broken: {error}",
            "nothing here uses it, audio is read by soundfile; for others, pip uninstall "
            "torchcodec or install the one of this torch, and ffmpeg",
        )


def _remedy(name: str, error: str, torchaudio: str | None) -> str:
    if name == "transformers" and torchaudio:
        return "pip uninstall torchaudio, which is broken"
    if error.startswith("ModuleNotFoundError: No module named "):
        module = error.split("'")[1].partition(".")[0]
        return f"pip install {module}"
    return f"pip install --force-reinstall {name}"


def import_errors(statements: Mapping[str, str]) -> dict[str, str | None]:
    """What each says when it fails, None if it does not; all at once."""
    env = os.environ | {"PYTHONWARNINGS": "ignore"}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", statement],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=env,
        )
        for name, statement in statements.items()
    }
    found: dict[str, str | None] = {}
    for name, process in running.items():
        try:
            _, said = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            found[name] = f"not done after {SECONDS:.0f} s"
            continue
        lines = said.strip().splitlines()
        last = lines[-1].strip() if lines else f"ended with {process.returncode}"
        found[name] = last[:200] if process.returncode else None
    return found


def audio_files() -> Iterator[Finding]:
    """Formats that the installed libsndfile reads."""
    import soundfile

    formats = set(soundfile.available_formats())
    missing = sorted({"WAV", "FLAC", "OGG", "MP3"} - formats)
    found = f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}"
    if missing:
        yield Finding(
            "audio files",
            "warning",
            f"{found}, which cannot read {', '.join(missing)}",
            "pip install -U soundfile, or convert such files to FLAC",
        )
    else:
        yield Finding("audio files", "ok", f"{found}: WAV, FLAC, OGG, MP3")


def espeak() -> Iterator[Finding]:
    """The voice of the synthetic corpora: whether it can be loaded, in a process of its own."""
    if importlib.util.find_spec("espeakng_loader") is None:
        return  # among the extras
    load = "import ctypes, espeakng_loader as e; ctypes.CDLL(e.get_library_path())"
    if error := import_errors({"espeak": load})["espeak"]:
        yield Finding(
            "espeak-ng",
            "warning",
            f"cannot be loaded: {error}",
            "pip install --force-reinstall espeakng-loader; only synthetic corpora need it",
        )
    else:
        yield Finding("espeak-ng", "ok", f"loads, espeakng-loader {_version('espeakng-loader')}")


def extras() -> Iterator[Finding]:
    """Optional parts; none has to be there."""
    there = [name for name, module in EXTRAS.items() if importlib.util.find_spec(module)]
    absent = [name for name in EXTRAS if name not in there]
    found = f"{', '.join(there) or 'none'} installed"
    if absent:
        found += f"; not {', '.join(absent)} (pip install 'speechfuse[{','.join(absent)}]')"
    yield Finding("extras", "ok", found)


def hub() -> Iterator[Finding]:
    """Whether encoders may be fetched, and where they are kept."""
    from huggingface_hub import constants

    where = f"files in {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        yield Finding("model hub", "ok", f"not asked (HF_HUB_OFFLINE is set), {where}")
    else:
        yield Finding("model hub", "ok", f"asked for encoders that are not here, {where}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of unknown version"
