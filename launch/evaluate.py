"""Evaluate models: `snac-accel evaluate`, as a file that `accelerate launch` and `torchrun` can start.

python launch/evaluate.py runs/demo --output evaluation
accelerate launch launch/evaluate.py runs/demo --output evaluation --all
"""

import sys

from snac_accel.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
