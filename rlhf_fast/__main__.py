"""`python -m rlhf_fast VERB ...` is the command `rlhf-fast`."""

import sys

from rlhf_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
