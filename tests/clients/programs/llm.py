"""The command `llm`: `llm.py BASE_URL`, with a folder of its own in LLM_USER_PATH."""

import base64
import json
import os
import pathlib
import sys

import click
import click.testing
import llm.cli

from tests.clients.programs.answering import answer

configuration = pathlib.Path(os.environ["LLM_USER_PATH"]) / "extra-openai-models.yaml"


def run(model, question, *options, image=None, completion=False):
    """Run `llm`; return what it printed. What it shows of an error is the error's text."""
    configuration.write_text(json.dumps([{
        "model_id": "routed", "model_name": model, "api_base": sys.argv[1], "vision": True,
        "api_key_name": "router", "completion": completion}]))
    attached = ["--attachment", "-"] if image else []
    shown = click.testing.CliRunner().invoke(
        llm.cli.cli, ["prompt", "--model", "routed", "--key", "sk-mine", "--no-log",
                      *attached, *options, question],
        input=base64.b64decode(image.partition(",")[2]) if image else None)
    if shown.exit_code:
        raise click.ClickException(shown.output)
    return {"text": shown.output}


def chat(model, question, image=None, retries=0):
    """Ask, and wait for the whole answer; `llm` chooses itself how often it tries."""
    return run(model, question, "--no-stream", image=image)


def complete(model, question):
    """Have a text completed, by the older route, as it comes."""
    return run(model, question, completion=True)


answer(chat=chat, stream=run, complete=complete)
