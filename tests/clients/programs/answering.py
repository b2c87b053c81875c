"""How a program in Python talks to the tests: asked on stdin, answered on stdout, a line each."""

import json
import sys


def answer(**ways):
    """Do what each line of stdin asks, and print what the client saw as one line of JSON.

    ways  name -> function that takes the other members of the line and returns what was seen
    """
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            seen = ways[asked.pop("do")](**asked)
        except Exception as error:
            seen = {"raised": type(error).__name__, "shown": str(error),
                    "status": getattr(error, "status_code", None),
                    **{key: getattr(error, key, None) for key in ("type", "code", "param")}}
        print(json.dumps(seen), flush=True)


def messages(question, image=None):
    """Return `question` as messages of a chat; `image` is a data URL shown with it."""
    parts = [{"type": "text", "text": question},
             {"type": "image_url", "image_url": {"url": image}}]
    return [{"role": "user", "content": parts if image else question}]
