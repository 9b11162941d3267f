"""`python -m tests.faults --output docs/faults.md`: the table of faults, from what the tests have left."""

import sys

from tests.faults.outcomes import SUBJECT, document
from tests.kept import write_page

sys.exit(write_page(SUBJECT, __doc__, document, sys.argv[1:]))
