"""Before anything of the app is imported: metrics in memory, no environment of the caller's."""

import dataclasses
import os

from app.config import Config

for field in dataclasses.fields(Config):
    for name in (field.metadata["name"], field.metadata["name"].lower()):
        os.environ.pop(name, None)
