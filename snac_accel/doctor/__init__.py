"""What is wrong with the data, before a run is paid for: `examine` reads clips, `quick_check` looks at the first ones.

`measures` are functions of audio, `clip` applies them to one clip, `sampling` chooses clips, `summary` brings them
together, `plan` says what the run makes of them, `findings` what to complain of; `table` and `picture` show it.
"""

from .examination import Diagnosis, examine, quick_check
from .findings import Finding
from .picture import draw_picture
from .table import json_report, text_report

__all__ = ["Diagnosis", "Finding", "draw_picture", "examine", "json_report", "quick_check", "text_report"]
