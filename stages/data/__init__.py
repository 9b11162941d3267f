"""Sources and formats, safe image decoding, memory-mapped tables, and the order in which samples meet."""
