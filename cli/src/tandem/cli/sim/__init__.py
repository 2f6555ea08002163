"""A whole cluster on one virtual clock, with every fault from one seed, and the invariants checked after each event.

The room machines, the registry, the views and the policies are those of tandem.core; network, memory and engines are
models. `world` builds one run and `run` many; `checks` names what must hold, and ARCHITECTURE.md says what it means.
"""
