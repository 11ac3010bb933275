"""What Lightning does beside learning: seeds and stops of steps, moved folders, logs, silence."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from speechfuse.checkpoint import unwritable, write_bytes, write_text
from speechfuse.errors import RunError
from speechfuse.types import Progress


class StepSeed(Callback):
    """Dropout repeats after a resume: each batch is seeded from its number."""

    def __init__(self, seed: int, accumulate: int = 1, rank: int = 0) -> None:
        """accumulate: batches in one step. rank: of this process; parts of a batch differ in it."""
        self._first, self._accumulate, self._rank = seed << 32, accumulate, rank

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        number = trainer.global_step * self._accumulate + batch_idx % self._accumulate
        part = self._rank if batch.parts > 1 else 0  # what all compute is dropped out alike
        torch.manual_seed(self._first + (part << 24) + number)


class Stop(Callback):
    """Ctrl-C or SIGTERM ends training between two steps and the state is kept; twice, at once.

    In the midst of a step the weights may be half updated, and a batch drawn but not learned from.
    """

    def __init__(
        self,
        checkpoint: Path,
        told: Callable[[], bool],
        *,
        accumulate: int = 1,
        launched: bool = False,
    ) -> None:
        """told: whether this process is asked in another way than by a signal.

        accumulate: batches in one step. launched: by torchrun or srun, who pass on the signal that
        a terminal sends to all, and end what takes too long.
        """
        self._checkpoint, self._told, self._launched = checkpoint, told, launched
        self._accumulate = accumulate
        self._signalled = False

    @property
    def asked(self) -> bool:
        """Whether the user wants an end."""
        return self._signalled or self._told()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer, self._saved = trainer, trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):  # Lightning puts the old ones back
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._ask)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step  # by the checkpoint `last`

    def before(self, done: int) -> None:
        """Called when so many batches are done, and all else of the step if it was its last one.

        Processes that train together end together, once one of them is asked.
        """
        if done % self._accumulate == 0 and self._all_asked():
            if self._saved != self._trainer.global_step:
                self._trainer.save_checkpoint(self._checkpoint)
            raise KeyboardInterrupt

    def _all_asked(self) -> bool:
        return self._trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def _ask(self, *_: Any) -> None:
        if self._launched:
            self._signalled = True
            return
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        logging.getLogger(__name__).warning("stopping after this step; once more: at once")


class Moved(Callback):
    """A run folder may be moved between two calls; Lightning keeps whole paths of its checkpoints.

    Where they differ it would forget the best score, and look for the best weights in the old
    place.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        def here(value: Any) -> Any:
            if isinstance(value, dict):
                return {here(path): score for path, score in value.items()}
            return value.replace(old, self._folder, 1) if isinstance(value, str) else value

        for state in checkpoint["callbacks"].values():
            if old := state.get("dirpath"):
                state.update({name: here(value) for name, value in state.items()})


class OneLine(Callback):
    """A step has one line of a name in the log: those after the resumed one are taken again."""

    def __init__(self, log: LongCSV) -> None:
        self._log = log

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log.forget_from(trainer.global_step)


class ShowProgress(Callback):
    """Tells how many steps are taken."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._progress("training steps", trainer.global_step, int(trainer.max_steps))


class LongCSV(Logger):
    """step,name,value in one growing file, so that a resumed run keeps its curves."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @property
    def name(self) -> str:
        return "log"

    @property
    def version(self) -> str:
        return ""

    @property
    def experiment(self) -> None:
        return None

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: the recipe is beside the log."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        size = self._path.stat().st_size if self._path.is_file() else 0
        lines = [] if size else ["step,name,value\n"]
        lines += [f"{step},{n},{value:.6g}\n" for n, value in metrics.items() if n != "epoch"]
        try:
            with self._path.open("a") as file:
                file.write("".join(lines))
        except OSError as error:  # half of a line may be there
            with suppress(OSError):
                os.truncate(self._path, size)
            raise unwritable(self._path, error) from error

    @rank_zero_only
    def forget_from(self, step: int) -> None:
        """Drop what was logged at this step or later, by a run that goes on before it."""
        if self._path.is_file():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines[1:] if int(line.split(",")[0]) < step]
            write_text(self._path, "".join([*lines[:1], *kept]))


class WholeCheckpoints(TorchCheckpointIO):
    """A checkpoint is whole before it takes the place of the last one.

    Lightning writes it where temporary files are and copies it from there, over the last one,
    which a full disk would cost.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        whole, place = BytesIO(), Path(path)
        torch.save(checkpoint, whole)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, whole.getbuffer())


class Events(TensorBoardLogger):
    """Events alone: hparams.yaml would be empty."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Raises RunError if the thread that writes has failed; its queue would fill, and wait."""
        files: Any = self.experiment.file_writer
        if not files.event_writer._worker.is_alive():
            raise RunError(
                f"cannot write TensorBoard's events in {self.log_dir}, perhaps for want of room; "
                "what was finished is kept: make room, and the same command goes on"
            )
        super().log_metrics(metrics, step)

    def save(self) -> None:
        self.experiment.flush()


class quiet:
    """Keep Lightning's remarks off the terminal; what matters is in the progress and the log."""

    def __enter__(self) -> None:
        self._loggers = [logging.getLogger(n) for n in ("lightning.pytorch", "lightning.fabric")]
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", module="lightning")

    def __exit__(self, *error: Any) -> None:
        self._warnings.__exit__(*error)
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
