"""`python -m sscl` is `sscl`."""

import sys

from sscl.children import end_with_parent
from sscl.cli import main

end_with_parent()
sys.exit(main())
