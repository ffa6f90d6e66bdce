"""`python -m varlora`."""

import sys

from varlora.cli import main

if __name__ == "__main__":
    sys.exit(main())
