"""Every corpus that can be prepared by name: a new one is a file and a line here."""

from __future__ import annotations

from speechfuse.data.readers import (
    crema_d,
    emilia,
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

_ALL = (
    Reader("crema_d", crema_d.read),
    Reader("emilia", emilia.read, filters=("language", "max_hours", "min_dnsmos")),
    Reader("emodb", emodb.read),
    Reader("fluent_commands", fluent_commands.read),
    Reader("fsdd", fsdd.read),
    Reader("iemocap", iemocap.read),
    Reader("librispeech", librispeech.read),
    Reader("ml_superb", ml_superb.read_1h),
    Reader("ml_superb_10min", ml_superb.read_10min),
    Reader("ravdess", ravdess.read),
    Reader("voxceleb1", voxceleb1.read, trials=voxceleb1.TRIALS),
)
READERS = {reader.name: reader for reader in _ALL}


def find_reader(corpus: str) -> Reader:
    """The reader of a corpus.

    Raises:
        DataError: there is none of that name.
    """
    if corpus not in READERS:
        hint = did_you_mean(corpus, READERS)
        raise DataError(f"no corpus '{corpus}' to read from its owner's folder; {hint}")
    return READERS[corpus]
