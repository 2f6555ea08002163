"""Benchmarks of the data path: `python -m tandem.rdma.bench.kv`, which is also `tandem bench kv`."""
