"""How good models are on clips: a table, a summary with intervals, a page to listen to.

`models` opens what the user names, `clips` the data, `measuring` sends one through the other, `running` all of them over all
processes; `statistics` makes intervals, `results` the files, `pages` the page, `comparing` paired differences, `text` what is
printed.
"""

from ..listening import Page, Table
from .clips import EvaluationClip, EvaluationClips, clip_of, open_clips
from .comparing import comparison_page, difference_table, differences, merge, merge_page_clips
from .measuring import measure_clip
from .models import EvaluatedModel, distinct, find_model, name_and_label, open_model, run_config
from .results import SUMMARY_FILE, Results, read_results, summarize, write_results
from .running import Evaluated, Settings, evaluate_models, write_evaluation
from .statistics import Estimate, estimate
from .text import as_text
from .traits import choose_metrics

__all__ = [
    "SUMMARY_FILE",
    "Estimate",
    "Evaluated",
    "EvaluatedModel",
    "EvaluationClip",
    "EvaluationClips",
    "Page",
    "Results",
    "Settings",
    "Table",
    "as_text",
    "choose_metrics",
    "clip_of",
    "comparison_page",
    "difference_table",
    "differences",
    "distinct",
    "estimate",
    "evaluate_models",
    "find_model",
    "measure_clip",
    "merge",
    "merge_page_clips",
    "name_and_label",
    "open_clips",
    "open_model",
    "read_results",
    "run_config",
    "summarize",
    "write_evaluation",
    "write_results",
]
