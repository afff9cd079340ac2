"""`python -m rlhf_fast` is the command `rlhf-fast`."""

import sys

from rlhf_fast.cli import main

sys.exit(main())
