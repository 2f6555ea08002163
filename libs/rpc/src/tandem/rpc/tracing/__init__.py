"""Spans of one service, over OpenTelemetry's SDK: made, sampled, kept for a while, exported. Ranks do without it."""
