"""Encoders: from observations to tokens, from instructions to embeddings."""
