"""`python -m mixdpo_pyro` is `mixdpo`."""

import sys

from mixdpo_pyro.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
