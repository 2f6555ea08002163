"""Provider `verbs`: KV pages as RDMA writes over RoCE or InfiniBand, through pyverbs.

library       what differs between releases of pyverbs, and nothing else knows pyverbs
device        a context, a protection domain, a completion queue, registered memory
events        what a device's asynchronous events mean
dmabuf        registration of a GPU's memory
queue_pair    one queue pair, from RESET to destroyed
posting       work requests, at the speed of C where that is possible
rail          two devices of a lane, and how their queue pairs are replaced
plan          a write as pieces and segments; pure
control       what both ends say to each other
sender        the prefill side's lane
receiver      the decode side's lane
provider      all of it, for an endpoint
"""
