"""A whole cluster on one virtual clock, with faults from one seed, and the invariants checked as it goes.

The room machines, the registry, the views and the policies are those of tandem.core; network, memory and engines are
models. `world` builds one run and `campaign` many; `checks` names what must hold, and ARCHITECTURE.md what it means.
"""
