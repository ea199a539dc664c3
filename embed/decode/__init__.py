"""Decoding of picture files into pixels."""
