"""How many seconds of audio an encoder takes in a second: by arithmetic, or measured on a clip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from speechfuse.contracts import Upstream
from speechfuse.data.batching import batch_seconds
from speechfuse.errors import RecipeError, damage, did_you_mean
from speechfuse.measure import product_rate, seconds_in_turns
from speechfuse.types import Waveforms

EFFICIENCY = 0.6  # of an encoder, whose smaller operations wait for memory
MEASURE = (
    "measure on the machine that will be used: speechfuse bench extraction --json > rates.json, "
    "and give --rates rates.json; another shape, layers or silence: give --measure there, or "
    "--rate NAME=RATE"
)
CLIP = 4.0  # seconds of noise that an encoder is measured on; on a GPU as many as a batch has


def find_rates(
    upstreams: Mapping[str, Upstream],
    device: torch.device,
    given: Mapping[str, float],
    *,
    measure: bool = False,
) -> tuple[dict[str, float], str]:
    """Of every upstream, and in words where they are from.

    given: by name, or one for all under "". measure: where none is given, run the encoder on a
    clip, for which its weights are read; else its multiply-adds are taken at the rate of a large
    matrix product on this machine.

    Raises:
        RecipeError: a rate is given of an upstream that is not there.
        UpstreamError: weights that cannot be read.
    """
    check_given(upstreams, given)
    found = {n: given.get(n, given.get("", 0.0)) for n in upstreams if n in given or "" in given}
    rest = [name for name in upstreams if name not in found]
    how = ["rates as given"] if found else []
    if rest and measure:
        how.append(f"measured on {CLIP:g} s clips, {device.type}")
        found |= {name: measured_rate(upstreams[name], device) for name in rest}
    elif rest:
        how.append(f"guessed from multiply-adds, {device.type}")
        product = product_rate(device)
        plans = {name: upstreams[name].plan for name in rest}
        found |= {n: EFFICIENCY * product / max(1.0, p.macs_per_second) for n, p in plans.items()}
    return {name: found[name] for name in upstreams}, " and ".join(how)


def bench_rates(
    path: Path, upstreams: Mapping[str, Upstream], device: str | None = None
) -> tuple[dict[str, float], str, str]:
    """What `bench extraction --json` measured of these encoders, on which machine and device.

    An encoder is known by its multiply-adds and compute type; of those without products, like a
    filterbank, nothing is measured. device: cpu or cuda; left out, that of a GPU if there is one.

    Raises:
        RecipeError: no such file, or it has no rate of an encoder.
    """
    with damage(path, RecipeError, "write it again with: speechfuse bench extraction --json"):
        try:
            rows = [dict(row) for row in json.loads(path.read_text())["rates"]]
        except FileNotFoundError as error:
            raise RecipeError(f"no file {path}; {MEASURE}") from error
        rows = [row for row in rows if float(row["rate"]) > 0]
        chosen = device or ("cuda" if any(row["device"] == "cuda" for row in rows) else "cpu")
        there = {
            (round(row["multiply_adds"]), row["compute"]): row
            for row in rows
            if row["device"] == chosen
        }
        shapes = sorted({f"{row['shape']} in {row['compute']}" for row in there.values()})
    found: dict[str, float] = {}
    machines: set[str] = set()
    for name, upstream in upstreams.items():
        compute = getattr(upstream, "compute", None)
        if compute is None:
            continue
        row = there.get((round(upstream.plan.macs_per_second), compute))
        if row is None:
            spec = upstream.plan.spec
            raise RecipeError(
                f"{path} has no rate of '{name}' ({spec.num_layers} x {spec.dim}, {compute}) on "
                f"{chosen}, it has {', '.join(shapes) or 'none'}; {MEASURE}"
            )
        found[name] = float(row["rate"])
        machines.add(str(row["machine"]))
    return found, " and ".join(sorted(machines)), chosen


def check_given(known: Mapping[str, object], given: Mapping[str, float]) -> None:
    """Raises RecipeError if a rate is given of an upstream that is not there."""
    for name in given:
        if name and name not in known:
            raise RecipeError(f"--rate {name}: no such upstream; {did_you_mean(name, known)}")


@torch.no_grad()
def measured_rate(upstream: Upstream, device: torch.device) -> float:
    """Of noise, the second time, with weights read and laid out."""
    upstream.load()
    upstream.to(device)
    count = int(batch_seconds(device) // CLIP) if device.type == "cuda" else 1
    size = round(CLIP * upstream.sample_rate)
    lengths = torch.full((count,), size, device=device)
    noise = 0.1 * torch.randn(count, size, device=device)
    wav = Waveforms(noise, lengths, upstream.sample_rate)
    (taken,) = seconds_in_turns({"": lambda: upstream(wav)}, 1)[""]
    upstream.to("cpu")
    return count * CLIP / taken


def duration(seconds: float) -> str:
    """For reading, rounded as a guess is."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
