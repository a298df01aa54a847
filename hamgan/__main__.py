"""`python -m hamgan`."""

import sys

from hamgan.cli import main

sys.exit(main())
