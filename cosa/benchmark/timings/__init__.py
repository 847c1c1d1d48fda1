"""Times and memory: of training, inference, the CRF, loading and metrics."""
