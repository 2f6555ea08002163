"""The KV data path: registered memory, grants, lanes and transfers, over tcp, cma and fake (verbs to come).

Start with `tandem.rdma.api`: it is the whole public surface. `tandem.rdma.open_endpoint` makes an endpoint.
"""
