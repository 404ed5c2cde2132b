"""`python -m torchjepa ...` is `jepa ...`; what torchrun starts."""

import sys

from torchjepa.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
