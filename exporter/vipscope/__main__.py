"""`python -m vipscope` is the command `vipscope`."""

import sys

from vipscope.cli import main

if __name__ == "__main__":
    sys.exit(main())
