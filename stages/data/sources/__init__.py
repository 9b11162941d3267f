"""Formats that are read: M-BEIR, pairs, records of a corpus; on disk or in a bucket."""
