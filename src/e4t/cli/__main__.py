"""``python -m e4t.cli``."""

import sys

from e4t.cli import main

sys.exit(main())
