"""`python -m iqvit`, which is how `torchrun -m iqvit` starts every process."""

import sys

from iqvit.cli import main

if __name__ == "__main__":
    sys.exit(main())
