"""Tiny trees in the layouts of corpora as their owners ship them."""

import io
import json
import tarfile

import numpy as np
import soundfile


def sound(path, rate=16000):
    """A tenth of a second in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.ones(rate // 10), rate)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def librispeech(source, parts=("train-clean-100", "dev-clean", "test-clean", "test-other")):
    for number, part in enumerate(parts, start=1):
        for speaker in (f"{number}03", f"{number}04"):
            names = [f"{speaker}-1240-{i:04d}" for i in range(2)]
            lines = [f"{name} CHAPTER ONE" for name in names]
            text(source / part / speaker / "1240" / f"{speaker}-1240.trans.txt", *lines)
            for name in names:
                sound(source / part / speaker / "1240" / f"{name}.flac")
    text(source / "SPEAKERS.TXT", "; ID |SEX| SUBSET |MINUTES| NAME")
    return source


def voxceleb1(source, folders=("wav", "wav")):
    for speaker in ("id10001", "id10002", "id10003", "id10270", "id10271"):
        folder = source / folders[speaker > "id10269"] / speaker
        for video in ("5r0dWxy17C8", "x6uYqmx31kE"):
            sound(folder / video / "00001.wav")
    one, other = "id10270/5r0dWxy17C8/00001.wav", "id10270/x6uYqmx31kE/00001.wav"
    text(source / "veri_test.txt", f"1 {one} {other}", f"0 {one} id10271/x6uYqmx31kE/00001.wav")
    return source


def fluent_commands(source):
    header = ",path,speakerId,transcription,action,object,location"
    for split in ("train", "valid", "test"):
        lines = [header]
        for i in range(2):
            path = f"wavs/speakers/{split}{i}/{split}-4474-{i}.wav"
            sound(source / path)
            lines.append(
                f'{i},{path},{split}{i},"Bedroom, heat up",increase,heat,bedroom'
                if i
                else f"{i},{path},{split}{i},Pause the music,deactivate,music,none"
            )
        text(source / "data" / f"{split}_data.csv", *lines)
    return source


LABELS = ("neu", "hap", "exc", "ang", "sad", "fru", "xxx")


def iemocap(source):
    for session in range(1, 6):
        dialog = f"Ses0{session}F_impro01"
        names = [f"{dialog}_{'FM'[i % 2]}{i:03d}" for i in range(len(LABELS))]
        root = source / f"Session{session}"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for name, label in zip(names, LABELS, strict=True):
            lines += [
                f"[6.2901 - 8.2357]\t{name}\t{label}\t[2.5000, 2.5000, 2.5000]",
                "C-E2:\tNeutral;\t()",
                "A-E3:\tval 3; act 2; dom  2;\t()",
                "",
            ]
            sound(root / "sentences" / "wav" / dialog / f"{name}.wav")
        text(root / "dialog" / "EmoEvaluation" / f"{dialog}.txt", *lines)
        text(root / "dialog" / "EmoEvaluation" / "Categorical" / f"{dialog}_e2_cat.txt", "x")
        spoken = [f"{name} [006.2901-008.2357]: Excuse me: now." for name in names]
        text(root / "dialog" / "transcriptions" / f"{dialog}.txt", *spoken, "F: (laughs)")
    return source


def ml_superb(source):
    counts = {"1h_train": range(4), "10min_train": range(1, 2)}
    counts |= {"10min_dev": range(4, 6), "10min_test": range(6, 7)}
    for folder, first in (("mls/eng", 0), ("mls/deu", 0), ("fleurs/lit", 96)):
        stem = folder.replace("/", "_")
        for name, numbers in counts.items():
            lines = [f"{stem}_{first + i:06d} 0.100 Hello, [the] world" for i in numbers]
            text(source / folder / f"transcript_{name}.txt", *lines)
        for i in range(first, first + 7):
            sound(source / folder / "wav" / f"{stem}_{i:06d}.wav")
    return source


def emilia(source, language="de", part="Emilia", shards=2, clips=3, key="id"):
    """Shards as they lie on the hub, of real MP3 files, json and mp3 in turn."""
    tag = language.upper()
    for shard in range(shards):
        path = source / part / tag / f"{tag}-B{shard:06d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for clip in range(clips):
                name = f"{tag}_B{shard:05d}_S{clip:05d}_W000000"
                about = emilia_record(name, language, clip, key)
                _member(archive, f"{name}.json", json.dumps(about).encode())
                _member(archive, f"{name}.mp3", mp3(1.0 + clip))
    return source


def emilia_record(name, language, clip, key="id"):
    return {
        key: name,
        "wav": f"{name[:9]}/{name[:16]}/mp3/{name}.mp3",
        "text": f" Satz {clip}.",
        "duration": 1.0 + clip,
        "speaker": name[:16],
        "language": language,
        "dnsmos": 3.0 + 0.2 * clip,
    } | ({"phone_count": 7} if key == "_id" else {})


def mp3(seconds):
    file = io.BytesIO()
    time = np.arange(round(24000 * seconds)) / 24000
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * 300 * time), 24000, format="MP3")
    return file.getvalue()


def _member(archive, name, content):
    about = tarfile.TarInfo(name)
    about.size = len(content)
    archive.addfile(about, io.BytesIO(content))
