"""SGLang's own PD and Tandem under the same faults. `benchmarks.sglang_pd_faults` is where to begin."""
