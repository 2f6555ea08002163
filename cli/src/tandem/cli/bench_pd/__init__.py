"""`tandem bench pd`: disaggregated and plain SGLang, measured side by side in one run."""
