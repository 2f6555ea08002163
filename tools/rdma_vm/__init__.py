"""A small virtual machine with real RDMA verbs, for machines that have none.

Debian's kernel with Soft-RoCE (rdma_rxe) runs in qemu, without hardware virtualization and without root. Its root file
system is this machine's own, read-only, below a layer with rdma-core and below what the guest writes, which is lost at
its end. Nothing is installed on this machine. docs/testing-rdma.md tells how it is used.
"""
