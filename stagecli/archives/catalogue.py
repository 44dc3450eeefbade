"""Published data sets that `stagecli data prepare` reads: licence, address, layout.

The help of the command prints them, so this file imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Archive:
    """licence: of the audio, unless it says more; holds: what the extracted archive looks like;
    splits: where the clips of each split come from; task: what the data set is mostly used for;
    recipe: the shipped recipe that expects it, if there is one.
    """

    title: str
    licence: str
    address: str
    holds: str
    splits: dict[str, str]
    task: str
    recipe: str = ""


FOLDS = {"train": "folds 1 to 3", "valid": "fold 4", "test": "fold 5"}

ARCHIVES: dict[str, Archive] = {
    "fsdd": Archive(
        title="Free Spoken Digit Dataset: 3,000 spoken digits, 8 kHz",
        licence="CC BY-SA 4.0",
        address="https://github.com/Jakobovski/free-spoken-digit-dataset",
        holds="recordings/{digit}_{speaker}_{index}.wav",
        splits={
            "train": "index 8 and above",
            "valid": "index 5 to 7",
            "test": "index 0 to 4, the official test split",
        },
        task="t2a",
        recipe="fsdd-t2a",
    ),
    "esc10": Archive(
        title="ESC-10: 400 environmental sounds of 10 classes, 44.1 kHz",
        licence="CC BY 3.0",
        address="https://github.com/karolpiczak/ESC-50 (or /ESC-10)",
        holds="meta/esc50.csv and audio/*.wav of ESC-50; or 001 - Dog bark/*.ogg and so on",
        splits=FOLDS,
        task="t2a",
        recipe="esc10-t2a",
    ),
    "esc50": Archive(
        title="ESC-50: 2,000 environmental sounds of 50 classes, 44.1 kHz",
        licence="CC BY-NC 3.0",
        address="https://github.com/karolpiczak/ESC-50",
        holds="meta/esc50.csv and audio/*.wav",
        splits=FOLDS,
        task="t2a",
    ),
    "audiocaps": Archive(
        title="AudioCaps: 10 s clips of AudioSet with captions",
        licence="captions for academic use; the audio belongs to the authors of the videos",
        address="https://github.com/cdjkim/audiocaps",
        holds="train.csv, val.csv and test.csv (also in dataset/ or dataset2.0/), and the clips, "
        "in any folders, as Y{id}.wav, {id}.wav, {id}_{start}.wav or {audiocap_id}.wav",
        splits={"train": "train.csv", "valid": "val.csv", "test": "test.csv"},
        task="t2a",
        recipe="audiocaps-t2a",
    ),
    "clotho": Archive(
        title="Clotho 2.1: 5,929 sounds of 15 to 30 s, five captions each, 44.1 kHz",
        licence="captions: Tampere University, non-commercial; audio: Creative Commons, by file",
        address="https://zenodo.org/records/4783391",
        holds="clotho_captions_{development,validation,evaluation}.csv and a folder of each name",
        splits={"train": "development", "valid": "validation", "test": "evaluation"},
        task="t2a",
    ),
    "vctk": Archive(
        title="VCTK 0.92: read English of 110 speakers, 48 kHz",
        licence="CC BY 4.0",
        address="https://datashare.ed.ac.uk/handle/10283/3443",
        holds="wav48_silence_trimmed/p225/p225_001_mic1.flac and txt/p225/p225_001.txt",
        splits={
            "train": "all other speakers",
            "valid": "speakers p341, p345, p347, p351",
            "test": "speakers p360 to p364, p374, p376, s5, as in published super-resolution",
        },
        task="sr",
        recipe="vctk-sr-48k",
    ),
    "librispeech": Archive(
        title="LibriSpeech: read English of audiobooks, 16 kHz",
        licence="CC BY 4.0",
        address="https://www.openslr.org/12",
        holds="train-clean-100/{speaker}/{chapter}/*.flac with *.trans.txt, and the other parts",
        splits={
            "train": "train-clean-100, train-clean-360, train-other-500",
            "valid": "dev-clean, dev-other",
            "test": "test-clean, test-other",
        },
        task="t2a",
    ),
}
