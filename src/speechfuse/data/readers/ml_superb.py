"""ML-SUPERB (Shi et al. 2023, arXiv:2305.10615): 143 languages from many public corpora.

mls/eng/transcript_1h_train.txt                     lines `mls_eng_000123 DURATION the words`
mls/eng/transcript_10min_train.txt, transcript_10min_dev.txt, transcript_10min_test.txt
mls/eng/wav/mls_eng_000123.wav                      data set and language are the folders
"""

from __future__ import annotations

from pathlib import Path

from speechfuse.data.readers.layout import Row, find, split_lines

# All that the benchmark trains on in its 20 few-shot languages, five utterances each (ESPnet).
_FEW_SHOT = """
fleurs_bos_000067 fleurs_bos_000078 fleurs_bos_000080 fleurs_bos_000088 fleurs_bos_000090
fleurs_ceb_000054 fleurs_ceb_000064 fleurs_ceb_000069 fleurs_ceb_000071 fleurs_ceb_000080
NST_dan_000007 NST_dan_000072 cv_dan_000158 fleurs_dan_000058 fleurs_dan_000071
cv_epo_000006 cv_epo_000039 cv_epo_000063 cv_epo_000066 cv_epo_000076
cv_frr_000023 cv_frr_000086 cv_frr_000095 cv_frr_000102 cv_frr_000104
fleurs_ful_000055 fleurs_ful_000059 fleurs_ful_000067 fleurs_ful_000076 fleurs_ful_000081
cv_kaz_000080 cv_kaz_000097 cv_kaz_000111 fleurs_kaz_000036 fleurs_kaz_000066
fleurs_kea_000052 fleurs_kea_000070 fleurs_kea_000078 fleurs_kea_000083 fleurs_kea_000085
cv_lit_000026 cv_lit_000105 fleurs_lit_000097 mls_lit_000040 voxpopuli_lit_001707
fleurs_luo_000056 fleurs_luo_000062 fleurs_luo_000067 fleurs_luo_000073 fleurs_luo_000077
cv_srp_000078 cv_srp_000145 fleurs_srp_000068 fleurs_srp_000093 fleurs_srp_000105
googlei18n-asr_sun_000001 googlei18n-asr_sun_000007 googlei18n-asr_sun_000041
googlei18n-asr_sun_000099 googlei18n-asr_sun_000106
cv_tok_000004 cv_tok_000011 cv_tok_000030 cv_tok_000084 cv_tok_000101
mexico-el_tos_000006 mexico-el_tos_000122 mexico-el_tos_000152 mexico-el_tos_000496
mexico-el_tos_000563
nchlt_tso_000035 nchlt_tso_000040 nchlt_tso_000089 nchlt_tso_000104 nchlt_tso_000125
googlei18n-tts_tsn_000026 googlei18n-tts_tsn_000044 googlei18n-tts_tsn_000108
nchlt_tsn_000001 nchlt_tsn_000032
cv_tur_000095 cv_tur_000101 fleurs_tur_000060 fleurs_tur_000069 fleurs_tur_000095
fleurs_umb_000028 fleurs_umb_000029 fleurs_umb_000033 fleurs_umb_000040 fleurs_umb_000047
cv_vie_000105 cv_vie_000128 fleurs_vie_000067 fleurs_vie_000068 fleurs_vie_000077
fleurs_zul_000049 fleurs_zul_000057 nchlt_zul_000027 nchlt_zul_000090 nchlt_zul_000104
"""
_CHOSEN = frozenset(_FEW_SHOT.split())
_LANGUAGES = frozenset(name.split("_")[1] for name in _CHOSEN)


def read_10min(source: Path) -> list[Row]:
    """With ten minutes to train on for each language and data set."""
    return _read(source, "10min")


def read_1h(source: Path) -> list[Row]:
    """With one hour to train on for each language and data set."""
    return _read(source, "1h")


def _read(source: Path, size: str) -> list[Row]:
    """Development and test sets are the same for both sizes; speakers are unknown."""
    layout = f"mls/eng/transcript_{size}_train.txt, transcript_10min_dev.txt, ..._test.txt, wav/"
    rows = []
    for first in find(source, "*/*/transcript_10min_test.txt", layout):
        folder = first.parent.relative_to(source)
        dataset, language = folder.parts
        for split, minutes in (("train", size), ("dev", "10min"), ("test", "10min")):
            (transcripts,) = find(source, f"{folder}/transcript_{minutes}_{split}.txt", layout)
            expected = "an utterance, its duration and its words"
            for name, _, text in split_lines(transcripts, 3, expected):
                if split == "train" and language in _LANGUAGES and name not in _CHOSEN:
                    continue
                rows.append(
                    {
                        "audio": str(folder / "wav" / f"{name}.wav"),
                        "text": text,
                        "language": language,
                        "split": split,
                        "dataset": dataset,
                        "few_shot": "yes" if language in _LANGUAGES else "no",
                    }
                )
    return rows
