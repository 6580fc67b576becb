"""Shard server: finds candidates in the shards that one machine holds of a replica set."""
