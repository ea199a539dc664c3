"""Decoding of picture files into pixels; `lmk.embed.data.images.decode` is the entry."""
