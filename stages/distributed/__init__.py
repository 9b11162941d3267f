"""The work of stages on a cluster: Ray Train around the loop, Ray Data around the encoder, shards."""
