"""What a run will do and why: the graph, the keys, and the code and data that a key covers. No torch, no Ray."""
