"""`python -m sscl` is `sscl`."""

import sys

from sscl.cli import main

sys.exit(main())
