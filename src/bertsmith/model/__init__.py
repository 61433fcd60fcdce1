"""Ids to hidden states: packed batches, the encoder, its heads, and Hugging Face folders. No loss, no optimizer."""
