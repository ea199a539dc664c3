"""The Google Landmarks Dataset v2: download and unpack."""
