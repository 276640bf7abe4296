"""A page to listen to: one folder with `index.html` that opens from the disk and from any static host, without a network.

`contents` says what is on it, `writing` writes the folder, `curves` makes curves of a run's log; `static` is the page itself,
plain JavaScript and CSS.
"""

from .contents import Curves, Page, PageClip, PageModel, Sound, Table
from .writing import INDEX_FILE, read_page_clip, write_page

__all__ = ["INDEX_FILE", "Curves", "Page", "PageClip", "PageModel", "Sound", "Table", "read_page_clip", "write_page"]
