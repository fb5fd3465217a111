"""kdeploy: a trained PyTorch model to production on KServe, as one tool."""

__version__ = "0.1.0"
