"""Characters to ids on disk: sources, tokenizers, windows, the token store. Nothing here imports torch."""
