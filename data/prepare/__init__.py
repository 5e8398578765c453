"""Prepares a data set from any source: drops what is broken, bad or twice there; writes shards."""
