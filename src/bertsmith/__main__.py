"""`python -m bertsmith` is the command `bertsmith`."""

import sys

from bertsmith.cli import main

if __name__ == "__main__":
    sys.exit(main())
