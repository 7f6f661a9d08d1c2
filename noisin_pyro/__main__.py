"""``python -m noisin_pyro`` is ``noisin``."""

import sys

from noisin_pyro.cli import main

if __name__ == "__main__":
    sys.exit(main())
