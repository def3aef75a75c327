"""`python -m raydpo`: the same program as `raydpo`."""

import sys

from raydpo.cli import main

if __name__ == "__main__":
    sys.exit(main())
