"""The application object gunicorn loads."""

from app.config import load_config
from app.factory import create_app

application = create_app(load_config())
