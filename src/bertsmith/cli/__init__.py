"""The command `bertsmith`: it parses, calls the function of the same name, and prints.

app.py          the verbs by name, exit codes, errors
config.py       a settings file under --config, which flags override
text_verbs.py   tokenizer train, corpus build: never wait for torch
model_verbs.py  everything that needs a model
"""

from bertsmith.cli.app import main

__all__ = ["main"]
