"""`python -m tests.nodes --output docs/nodes.md`: runs on nodes that share nothing, as the tests left them."""

import sys

from tests.kept import write_page
from tests.nodes.outcomes import SUBJECT, document

sys.exit(write_page(SUBJECT, __doc__, document, sys.argv[1:]))
