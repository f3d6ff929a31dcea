"""The seven stages: plain async classes over a batch of envelopes."""
