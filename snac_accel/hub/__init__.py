"""Models on the Hugging Face Hub: a queue on the disk, pushed in the background, tried again until it arrives."""

from .jobs import Job, Queue
from .publisher import Publisher
from .pushing import push_files, push_job, push_to_hub

__all__ = ["Job", "Publisher", "Queue", "push_files", "push_job", "push_to_hub"]
