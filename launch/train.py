"""Train SNAC: `snac-accel train`, as a file that `accelerate launch` and `torchrun` can start.

python launch/train.py                       the published 24 kHz model on LJ Speech
accelerate launch launch/train.py --preset demo
python launch/train.py --help                all settings
"""

import sys

from snac_accel.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
