"""The machine: cores, memory, GPU, and the disk of the stores."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from speechfuse.doctor.finding import Check, Finding

LEAST_MEMORY = 4e9  # bytes that should be free: a base encoder, a batch and the layers of both
LEAST_GPU = 4e9
LEAST_DISK = 2e9
SLOW_DISK = 50e6  # bytes a second
TRIED = 64 << 20  # bytes written to see
NETWORK = (  # kinds of file systems, by how they begin
    *("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "afs", "9p", "glusterfs"),
    *("fuse.sshfs", "fuse.s3", "fuse.gcsfuse", "fuse.rclone", "virtiofs"),
)


def machine_checks(stores: Path, budget_gb: float) -> list[tuple[str, Check]]:
    """stores: folder of the stores, which may not be there yet, and how large it may get."""
    return [
        ("cores", cores),
        ("bfloat16", bfloat16),
        ("GPU", gpu),
        ("memory", memory),
        ("disk", partial(disk, stores, budget_gb)),
    ]


def cores() -> Iterator[Finding]:
    """Threads against cores that this process may use, a container's share counted."""
    import torch

    threads, there = torch.get_num_threads(), usable_cores()
    asked = os.environ.get("OMP_NUM_THREADS")
    found = f"{threads} threads of torch, {there:g} cores"
    found += f", OMP_NUM_THREADS={asked}" if asked else ""
    if threads > there + 0.5:
        few = max(1, int(there))
        yield Finding(
            "cores",
            "warning",
            f"{found}: more threads than cores wait for each other",
            f"export OMP_NUM_THREADS={few}",
        )
    else:
        yield Finding("cores", "ok", found)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Of those of the machine, what affinity and a container's quota leave."""
    affinity = getattr(os, "sched_getaffinity", None)
    there = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        most, period = quota.read_text().split()
        if most != "max":
            there = min(there, int(most) / int(period))
    return there


def bfloat16() -> Iterator[Finding]:
    """Whether products of bfloat16 are faster here than of float32."""
    from speechfuse.upstreams.huggingface import has_bfloat16

    if has_bfloat16():
        found = "fast here: compute: bfloat16 of an upstream takes about half the time"
    else:
        found = "not fast on this processor, encoders are best computed in float32"
    yield Finding("bfloat16", "ok", found)


def gpu() -> Iterator[Finding]:
    """The GPUs that torch sees, or why it sees none."""
    import torch

    smi = nvidia_smi()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name, cuda = torch.cuda.get_device_name(index), torch.version.cuda
            driver = f", driver {smi[0][1]}" if smi else ""
            found = f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free, CUDA {cuda}{driver}"
            if free < LEAST_GPU:
                do = f"nvidia-smi tells who has the rest; CUDA_VISIBLE_DEVICES without {index}"
                yield Finding(f"GPU {index}", "warning", found, do)
            else:
                yield Finding(f"GPU {index}", "ok", found)
    elif smi and torch.version.cuda is None:
        yield Finding(
            "GPU",
            "problem",
            f"{smi[0][0]} is here, this torch is one for CPUs ({torch.__version__})",
            "install torch with CUDA (pytorch.org), or hide the GPU: CUDA_VISIBLE_DEVICES=",
        )
    elif smi and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        yield Finding(
            "GPU",
            "problem",
            f"{smi[0][0]} with driver {smi[0][1]}, which torch's CUDA {torch.version.cuda} cannot "
            "use",
            "update the driver, or install torch for an older CUDA",
        )
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "ok", "Apple's (MPS): training uses it, encoders run on the CPU")
    else:
        yield Finding("GPU", "ok", "none that may be used, everything runs on the CPU")


def nvidia_smi() -> list[tuple[str, str]]:
    """Name and driver of each NVIDIA GPU, whatever torch says; empty without its tool."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        lines = done.stdout.strip().splitlines() if done.returncode == 0 else []
        parts = [line.rpartition(",") for line in lines]
        return [(name.strip(), driver.strip()) for name, _, driver in parts]
    return []


def memory() -> Iterator[Finding]:
    """What is free, a container's limit counted."""
    free = free_memory()
    if free is None:
        yield Finding("memory", "ok", "how much is free is not told here")
        return
    found = f"{free / 1e9:.1f} GB free"
    if free < LEAST_MEMORY:
        yield Finding("memory", "warning", found, "end other programs, or use smaller encoders")
    else:
        yield Finding("memory", "ok", found)


def free_memory(
    info: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Bytes; None where the system does not tell."""
    free = None
    with suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        free = 1024.0 * int(lines["MemAvailable"].split()[0])
    with suppress(OSError, ValueError):
        most = int((group / "memory.max").read_text())
        left = most - int((group / "memory.current").read_text())
        free = float(left) if free is None else min(free, left)
    return free


def disk(stores: Path, budget_gb: float) -> Iterator[Finding]:
    """Room, kind and speed of the disk that holds, or will hold, the stores."""
    folder = stores.absolute()
    while not folder.exists():
        folder = folder.parent
    free, kind = shutil.disk_usage(folder).free, filesystem(folder)
    try:
        speed = write_speed(folder)
    except OSError as error:
        yield Finding(
            "disk", "problem", f"nothing can be written in {folder} ({error})", "set store.folder"
        )
        return
    found = f"{stores}: {free / 1e9:.0f} GB free, {kind}, writes {speed / 1e6:.0f} MB/s"
    if free < LEAST_DISK:
        yield Finding("disk", "problem", found, "free some, or set store.folder to another disk")
    elif kind.startswith(NETWORK):
        yield Finding(
            "disk",
            "warning",
            f"{found}: layers are read again in every epoch, over a network",
            "set store.folder to a disk of this machine if there is one",
        )
    elif free < 1e9 * budget_gb:
        yield Finding(
            "disk",
            "warning",
            f"{found}, less than store.budget_gb {budget_gb:g}",
            f"free some, or set store.budget_gb={max(1, int(0.8 * free / 1e9))}",
        )
    elif speed < SLOW_DISK:
        yield Finding("disk", "warning", f"{found}, which is slow", "set store.folder elsewhere")
    else:
        yield Finding("disk", "ok", found)


def filesystem(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Kind of the file system that a folder is on."""
    best, kind = "", "unknown file system"
    with suppress(OSError):
        for line in mounts.read_text().splitlines():
            _, place, found, *_ = line.split()
            place = place.replace("\\040", " ")
            if folder.is_relative_to(place) and len(place) >= len(best):
                best, kind = place, found
    return kind


def write_speed(folder: Path, size: int = TRIED) -> float:
    """Bytes a second down to the disk, from a file that is gone afterwards."""
    piece = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(size >> 20):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        return size / (time.perf_counter() - began)
