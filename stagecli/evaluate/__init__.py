"""`stagecli evaluate`: runs on real clips, or two folders -> scores, each with its convention.

runs      runs and checkpoints: documents kept in the run, differences between them
sr, t2a   what is made of the clips of a split, and scored
folders   anyone's audio
pairs, sets, classifier, clap   scores of clip pairs; of sets; by labels; by prompts
hear, ledger                    what was computed is remembered
summary, tables                 means, intervals, limits; what is printed
"""

from stagecli.evaluate.folders import FolderOptions, evaluate_folders
from stagecli.evaluate.runs import Asked, Outcome, evaluate_run, evaluate_runs
from stagecli.evaluate.sr import SROptions, score_sr
from stagecli.evaluate.t2a import T2AOptions, score_t2a

__all__ = [
    "Asked",
    "FolderOptions",
    "Outcome",
    "SROptions",
    "T2AOptions",
    "evaluate_folders",
    "evaluate_run",
    "evaluate_runs",
    "score_sr",
    "score_t2a",
]
