"""Every corpus that can be prepared by name: a new one is a file and a line here."""

from __future__ import annotations

from speechfuse.data.readers import (
    crema_d,
    emodb,
    fluent_commands,
    fsdd,
    iemocap,
    librispeech,
    ml_superb,
    ravdess,
    voxceleb1,
)
from speechfuse.data.readers.layout import Reader
from speechfuse.errors import DataError, did_you_mean

READERS = {
    "crema_d": Reader(crema_d.read),
    "emodb": Reader(emodb.read),
    "fluent_commands": Reader(fluent_commands.read),
    "fsdd": Reader(fsdd.read),
    "iemocap": Reader(iemocap.read),
    "librispeech": Reader(librispeech.read),
    "ml_superb": Reader(ml_superb.read_1h),
    "ml_superb_10min": Reader(ml_superb.read_10min),
    "ravdess": Reader(ravdess.read),
    "voxceleb1": Reader(voxceleb1.read, trials=voxceleb1.TRIALS),
}


def find_reader(corpus: str) -> Reader:
    """The reader of a corpus.

    Raises:
        DataError: there is none of that name.
    """
    if corpus not in READERS:
        hint = did_you_mean(corpus, READERS)
        raise DataError(f"no corpus '{corpus}' to read from its owner's folder; {hint}")
    return READERS[corpus]
