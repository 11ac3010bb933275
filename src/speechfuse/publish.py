"""A trained run as a Hugging Face folder: what answers, and a card that says how well.

    config.json                encoders with revisions, tasks, fusion, versions
    model.safetensors          what was trained; encoders are fetched from where they are
    recipe.yaml, tasks.json    what `load` builds from; upstreams.json: hashes of the encoders
    tokenizer.json             of a task that writes pieces of words
    preprocessor_config.json   16 kHz, mono
    metrics.json, seen.json    scores with intervals; whom it was trained on
    layers.png, README.md      the card

No weights of an encoder, no audio, no path of this machine.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from speechfuse import __version__, build
from speechfuse.checkpoint import Run, write_text
from speechfuse.errors import RunError, SpeechFuseError
from speechfuse.experiments.layers import draw_layer_use, run_layer_use
from speechfuse.metrics import bracket, full_name
from speechfuse.recipe import Part, Recipe, code_of
from speechfuse.resources import markdown_template
from speechfuse.runs import training_of
from speechfuse.types import Metric, Progress

KEPT = ("model.safetensors", "tasks.json", "upstreams.json", "metrics.json", "seen.json")
PICTURE = "layers.png"
CLASSES = 12  # of more, a card says how many there are


def save_pretrained(
    run: Path,
    folder: Path,
    *,
    sources: Mapping[str, str] | None = None,
    license: str | None = None,
    name: str | None = None,
    picture: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Write the folder, whole or not at all; `load(folder)` answers as the run does.

    sources: for encoders that lie in a folder here, where others find them, as name@revision.
    license: of the weights, as the hub writes it. name: that others load it by; the folder's if
    left out. picture: of the layers' use, for which the training corpora have to be here.

    Raises:
        RunError: the run is not finished, an encoder is where nobody else finds it, or the folder
            is there already.
        UpstreamError: what stands at a source is another encoder.
    """
    kept = Run(run)
    recipe = kept.recipe()
    if not kept.finished:
        raise RunError(f"{run} is not trained to its end; go on: {training_of(run)}")
    if folder.exists():
        raise RunError(f"{folder} is there already; choose another folder")
    public = _public(recipe, sources or {})
    kept.check(recipe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".publish-") as made:
        part = Path(made) / folder.name
        part.mkdir()
        for file in KEPT:
            if (run / file).is_file():
                shutil.copyfile(run / file, part / file)
        text = yaml.safe_dump(public.model_dump(mode="json"), sort_keys=False)
        write_text(part / "recipe.yaml", text)
        _write_upstreams(part, public)
        _write_tokenizers(part, kept)
        config = _config(public, kept)
        _write_json(part / "config.json", config)
        _write_json(
            part / "preprocessor_config.json",
            {"feature_extractor_type": "speechfuse", "sampling_rate": 16000, "num_channels": 1},
        )
        drawn = picture and _draw(run, part / PICTURE, progress)
        card = model_card(kept, public, license, name or folder.name, drawn=bool(drawn))
        write_text(part / "README.md", card)
        part.replace(folder)
    return folder


def push_to_hub(folder: Path, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Put such a folder on the hub; returns its address there.

    Raises:
        RunError: it is no such folder, or the hub refused it.
    """
    if not (folder / "config.json").is_file() or not (folder / "README.md").is_file():
        raise RunError(
            f"{folder} is no published folder; make one with: speechfuse publish RUN OUT"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Publish a run")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RunError(
            f"the hub did not take {name} ({type(error).__name__}: {error}); log in with: hf auth "
            "login, and check name and network"
        ) from error
    return f"https://huggingface.co/{name}"


def model_card(run: Run, recipe: Recipe, license: str | None, name: str, *, drawn: bool) -> str:
    """README.md of a published run, with what the hub reads in front."""
    metrics, data = run.metrics(), run.data()
    apart: dict[str, list[str]] = {}
    for task, about in data.items():
        apart.setdefault(about.apart(), []).append(task)
    return markdown_template("card.md.j2").render(
        name=name,
        recipe=recipe,
        encoders=[
            _encoder(name, part.options, identity)
            for (name, part), identity in zip(
                recipe.upstreams.items(), build.identities(recipe).values(), strict=True
            )
        ],
        metrics=metrics,
        rows=[
            (task, split, full_name(metric), Metric(**m))
            for split in ("dev", "test")
            for task, scores in metrics[split].items()
            for metric, m in scores.items()
        ],
        bracket=bracket,
        decisions=run.decisions(),
        data=data,
        apart={text: ", ".join(tasks) for text, tasks in apart.items()},
        few_classes=CLASSES,
        seen=sorted({one.corpus for one in run.seen()}),
        license=license,
        drawn=drawn,
        picture=PICTURE,
        code=code_of(recipe),
        version=__version__,
    )


def _public(recipe: Recipe, sources: Mapping[str, str]) -> Recipe:
    """The recipe with encoders where others find them and corpora by name alone."""
    if unknown := sorted({*sources} - {*recipe.upstreams}):
        raise RunError(f"no upstream '{unknown[0]}'; it has: {', '.join(recipe.upstreams)}")
    upstreams = {}
    for name, part in recipe.upstreams.items():
        options = dict(part.options)
        if name in sources:
            options["source"], _, revision = sources[name].partition("@")
            options["revision"] = revision or None
        source = options.get("source")
        if isinstance(source, str) and Path(source).is_dir():
            raise RunError(
                f"upstream '{name}' is the folder {source}, where nobody else finds it; say where "
                f"it is on the hub with --source {name}=ORG/NAME@REVISION"
            )
        upstreams[name] = Part(kind=part.kind, **options)
    tasks = {}
    for name, entry in recipe.tasks.items():
        if path := entry.head.options.get("language_model"):
            raise RunError(
                f"task '{name}' searches with {path}, which is no part of the run; train it "
                "without language_model"
            )
        named = tuple(Path(one).name for one in entry.extra_training)
        update: dict[str, Any] = {"corpus": Path(entry.corpus).name, "extra_training": named}
        if (augment := entry.augment) and augment.noise:
            noise = augment.noise.model_copy(update={"source": Path(augment.noise.source).name})
            update["augment"] = augment.model_copy(update={"noise": noise})
        tasks[name] = entry.model_copy(update=update)
    store = type(recipe.store)()
    return recipe.model_copy(update={"upstreams": upstreams, "tasks": tasks, "store": store})


def _write_upstreams(folder: Path, public: Recipe) -> None:
    """Identities as others find them; content has to be what the run was made with."""
    here = Run(folder)
    found = build.identities(public)
    for name, changed in here.moved(found).items():
        if changed := [key for key in changed if key not in build.PLACE]:
            raise RunError(
                f"what is at the new source of upstream '{name}' is another encoder (differs in "
                f"{', '.join(changed)})"
            )
    _write_json(folder / "upstreams.json", found)


def _write_tokenizers(folder: Path, run: Run) -> None:
    """tokenizer.json of the first task that has one; all are in tasks.json, too."""
    for state in run.tasks().values():
        if "bpe" in state:
            write_text(folder / "tokenizer.json", state["bpe"])
            return


def _config(recipe: Recipe, run: Run) -> dict[str, Any]:
    data = recipe.model_dump(mode="json")
    return {
        "model_type": "speechfuse",
        "architectures": ["SpeechModel"],
        "speechfuse_version": __version__,
        "transformers_version": version("transformers"),
        "upstreams": data["upstreams"],
        "fusion": data["fusion"],
        "context": data["context"],
        "tasks": {name: entry["head"] for name, entry in data["tasks"].items()},
        "labels": {n: s["labels"] for n, s in run.tasks().items() if "labels" in s},
    }


def _encoder(name: str, options: Mapping[str, Any], identity: Mapping[str, str]) -> dict[str, str]:
    source = str(options.get("source", identity.get("source", name)))
    on_hub = "/" in source
    return {
        "name": name,
        "source": source,
        "revision": identity.get("revision", "") if on_hub else "",
        "base_model": source if on_hub else "",
    }


def _draw(run: Path, path: Path, progress: Progress | None) -> bool:
    """Whether there is a picture: the corpora may be elsewhere."""
    try:
        draw_layer_use(run_layer_use(run, progress), path)
    except SpeechFuseError:
        return False
    return True


def _write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
