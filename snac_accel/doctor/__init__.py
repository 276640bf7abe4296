"""What is wrong with the data, before a run is paid for: `examine` reads clips, `quick_check` looks at the first ones.

`measures` are functions of audio, `clip` applies them to one clip, `sampling` chooses clips, `summary` brings them
together, `plan` says what the run makes of them, `findings` what to complain of; `table` and `picture` show it.
`memory` says what a training step needs, `fitting` what fits; neither looks at data.
"""

from .examination import Diagnosis, examine, quick_check
from .findings import Finding
from .fitting import MemoryReport, estimate_memory, json_memory, text_memory
from .picture import draw_picture
from .table import json_report, text_report

__all__ = [
    "Diagnosis",
    "Finding",
    "MemoryReport",
    "draw_picture",
    "estimate_memory",
    "examine",
    "json_memory",
    "json_report",
    "quick_check",
    "text_memory",
    "text_report",
]
