"""Make all runs and write what they show into this directory's README."""

import logging

from tests.simulate.report import publish

if __name__ == "__main__":
    # Each cooling would be a line.
    logging.disable(logging.WARNING)
    publish()
